"""What a template may do, and how much of it. Imports Jinja2: only `templates.render` imports this package."""
