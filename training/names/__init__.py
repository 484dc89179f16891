"""The recipe of the names model: text that is made up, a network that learns it, and the file that is shipped.

    python -m training.names --out curation/pii

``lexicon`` collects lists of names, ``sentences`` fills templates, ``silver`` reads real text where some is at hand,
``fit`` trains and writes the model. Nothing that the model is evaluated on is read here.
"""
