"""The method: one training step as pure functions of tensors. The files, in the order in which a batch meets them:

- `unix.py`: UNIX, its controls and its relatives, each a value; `method.py`: what such a value can say
- `from_config.py`: methods and losses by the names of the command line
- `epoch_choice.py`: which images an epoch visits, before they are decoded
- `batch.py`: the tensors of a step; `draws.py`: its random choices (λ, partners, noise), drawn beforehand
- `step.py`: the step itself: score, rank, mix, ask the teacher (`unixkd/teacher/teacher.py`), learn
- `scoring.py`: entropy, margin, least confidence, and the ranking; `resizing.py`: smaller images
- `mixing.py`: the mixing curve (k, b, w) and the mixed batch
- `network.py`: a network's inputs, outputs and layers; `named_inputs.py`: inputs of more than one tensor, text
- `losses.py`: KD, DKD, DIST, attention, similarity; `objective.py`: their weighted sum
- `ledger.py`: the cost: FLOPs of each forward, images counted, the sum against plain KD
"""
