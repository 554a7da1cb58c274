"""How good are captions, answers and pointing? Read metrics.py first, then __main__.py.

    python -m evaluate             captions and answers: BLEU, ROUGE-L, CIDEr-D, VQA accuracy
    python -m evaluate.pointing    which region a phrase means: CPT, zero-shot and few-shot
    python -m evaluate.compare     trains every method on shapes and puts them into one table
"""
