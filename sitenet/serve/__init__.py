"""A web page and a JSON API for the models of this machine."""
