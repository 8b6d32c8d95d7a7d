"""An example plug-in of vlmbench."""
