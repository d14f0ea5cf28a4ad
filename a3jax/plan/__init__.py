"""Does a run fit a named TPU topology, and how fast can it be: asked of the TPU compiler, on any machine.

`topology` names chips and makes devices to compile for; `compile` puts the real train step of a stage through the
compiler, which refuses what does not fit; `hlo` and `costs` read the compiled program; `roofline` sets its arithmetic,
memory traffic and communication against the chip; `stages` does so for a curriculum; `search` tries meshes and batches.
"""
