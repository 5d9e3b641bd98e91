"""Operations that need no worker: templates, validators and metrics, in the client's process and in workers alike."""
