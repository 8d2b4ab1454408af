"""The table of all operators: a strategy and an oracle each, and those that are tried elsewhere."""
from __future__ import annotations

from every_operator import chance, control, elementwise, folding, images, learned, moving, products, recurrent, windows
from every_operator.row import Row

FAMILIES = (elementwise, moving, folding, windows, products, images, recurrent, control, chance)
ROWS: dict[tuple[str, str], Row] = {("", name): row for family in FAMILIES for name, row in family.ROWS.items()}
ROWS |= {("ai.onnx.ml", name): row for name, row in learned.ML_ROWS.items()}
ROWS |= {("ai.onnx.preview.training", name): row for name, row in learned.TRAINING_ROWS.items()}
NOT_HERE: dict[tuple[str, str], str] = {
    ("", "ImageDecoder"): "its input is a picture file; the official suite has one of each format",
    ("ai.onnx.preview.training", "Gradient"): "needs a graph to differentiate: test_gradient.py, against finite differences",
}
