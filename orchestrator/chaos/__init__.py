"""A whole system under fire: real processes, a plan of mischief by seed, and a judge of what everybody saw.

`plan` says what is done when, `mischief` does it, `realm` keeps a coordinator running, `load` is a client's process,
`history` what it saw and whether that may be, `census` what is held, `run` brings them together; `sweep` tries every
fault point with every action, `soak` looks for what grows.
"""
