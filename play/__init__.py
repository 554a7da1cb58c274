"""python -m play: a page in the browser to draw on, and what the models here say about it.

    __main__.py   the command        models.py   which runs can do what, and their answers
    server.py     what is let in     page.html   the page
"""
