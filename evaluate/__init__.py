"""How good are captions, answers and pointing? python -m evaluate, evaluate.pointing, evaluate.compare."""
