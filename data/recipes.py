"""What a run is trained with, if nothing else is said: by dataset, by method on it, or by --preset.

A setting not named here keeps its default (Config in train.py and in the method). The start of
every run prints its recipe. Those of shapes were chosen on its val split.
"""

SHAPES = dict(lm="data/shapes/tiny-gpt2", clip="data/shapes/tiny-clip", epochs=7.0, batch=24,
              rows=3, warmup=50, beta2=0.99, eval_every=500, eval_images=200, cache=True, workers=0)
CAPTIONS = dict(SHAPES, lr=4e-3, width_ratio=1.0, heads=16, score=1000)
DVP = dict(method="dvp", lr=5e-4, beta2=0.98, weight_decay=0.01)
# Of a dataset, and of some methods on it. On top of these come what a method needs on a kind of
# language model (weights/kinds.py), and what is different for that on a dataset.
RECIPES = {
    "shapes": CAPTIONS,
    "shapes, vanilla": dict(CAPTIONS, lr=2e-3),
    "shapes, vcgpt": dict(CAPTIONS, lr=1e-3, n_fusion=2, heads=4),
    "shapes, prefix": dict(CAPTIONS, lr=1e-3, tokens="all", mapper_layers=2, heads=4),
    # On top of a captioner (--init_from): from nothing it long says what the text alone tells.
    "shapes/regions": dict(SHAPES, lr=2e-3, width_ratio=1.0, heads=16, rows=6, epochs=6.0),
    "shapes/vqa": dict(SHAPES, method="dvp", readout="head", lr=2e-3, search_epochs=9.0),
    "shapes/entail": dict(SHAPES, method="dvp", readout="head", lr=2e-3),
    # DVP's recipe, at most 256 questions a step; a pass is over images, `rows` questions on each.
    "vqa2": dict(DVP, readout="head", soft=True, batch=51, rows=5, epochs=10.0, warmup=2400),
    "gqa": dict(DVP, readout="head", batch=32, rows=8, epochs=16.0, warmup=3600, search_epochs=3.3),
    "snli_ve": dict(DVP, readout="head", batch=32, rows=8, epochs=11.0, warmup=2000,
                    search_epochs=2.25),
    "scienceqa": dict(DVP, batch=32, rows=1, epochs=20.0, lr=1.25e-3, beta2=0.95, weight_decay=0.05,
                      warmup=800, max_tokens=256),
}
# DVP's own models, frozen but for norms and adapters. One learning rate, theirs; of the heads of
# BERT and T5 on VQA2.0 and GQA they had ten times it.
RECIPES |= {
    "dvp on bert": dict(readout="head", types=True),
    "dvp on t5": dict(types=True),
    "dvp on llama": dict(adapter=64, silu=True, widening=0.125, draws=10),
    "shapes/vqa, dvp on llama": dict(adapter=8, widening=2.0),  # a 64th of a tiny one is nothing
    "vqa2, dvp on bert": dict(lr=1e-3),
    **{f"{name}, dvp on t5": dict(lr=3e-4) for name in ("vqa2", "gqa", "snli_ve")},
    **{f"{name}, dvp on llama": dict(weight_decay=0.2) for name in ("vqa2", "gqa")},
    "snli_ve, dvp on llama": dict(weight_decay=0.2, batch=16, epochs=22.0, warmup=4000),
}
# What --preset names; on top of the dataset's recipe for the method.
PRESETS = {
    "ituning-base": dict(method="ituning", lm="gpt2", clip="ViT-B/16", width_ratio=0.5),
    "ituning-medium": dict(method="ituning", lm="gpt2-medium", clip="ViT-B/16", width_ratio=0.5),
    "ituning-large": dict(method="ituning", lm="gpt2-large", clip="ViT-B/16", width_ratio=0.5),
    "vanilla": dict(method="vanilla"),
    "vcgpt": dict(method="vcgpt", n_fusion=6),
    # The sources disagree on what VC-GPT froze: this is the other reading of the paper.
    "vcgpt-tuned": dict(method="vcgpt", n_fusion=6, train_lm=True, train_vision=True),
    # differs: ClipCap pairs every caption with its image anew, 40 a step; here five share theirs.
    "clipcap": dict(method="prefix", lm="gpt2", clip="ViT-B/32", batch=8, rows=5, lr=2e-5,
                    warmup=5000),
    "clipcap-tuned": dict(method="prefix", lm="gpt2", clip="ViT-B/32", mapper="mlp", train_lm=True,
                          batch=8, rows=5, lr=2e-5, backbone_lr=2e-5, warmup=5000),
}
