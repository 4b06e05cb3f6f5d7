"""Constants and choices shared by several packages; imports no torch."""

from typing import Literal

DIGITS = "digits"
"""Name of scikit-learn's digits data set, the default data set of every command."""
MNIST5K = "mnist5k"
"""Name of the 5,000 MNIST digits of 28 x 28 pixels that ship with the package."""
Recipe = Literal["supernet", "adn", "elastic"]
"""Sub-networks that are distilled into: low bits, also the one without any path, or any depth."""
MAX_PASSES = 5
"""Largest number of passes of an episode; the search for rules over six would take hours."""
AnswerRule = Literal["mean", "last", "surest"]
"""Answer after several passes, see ``PassSettings``."""
Stopping = Literal["confidence", "gain"]
"""What decides whether another pass runs, see ``Rule``."""
ELASTIC_PARTS = 4
"""Equal parts of a batch with the recipe elastic, two of which run again with skipped layers."""
OptimizerName = Literal["sgd", "adamw"]
Precision = Literal["auto", "float32", "bfloat16"]
Stem = Literal["cifar", "imagenet"]
"""Stem of a network of adaptive depth: a 3 x 3 convolution, or 7 x 7 with stride 2 and pooling."""
Granularity = Literal["path", "block"]
"""Gated unit of a network of adaptive depth: the path of a stage, or each block in it."""
FirstBlock = Literal["gated", "always"]
"""First block of a ResNet: gated like the others, or a part of the stem."""
Corruptions = Literal["none", "mixed", "noise", "blur", "contrast", "brightness", "pixelation"]
"""Stream of images: clean, clean and all kinds of corruptions alike, or one kind."""
