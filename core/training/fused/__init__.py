"""The network's costly layer, relu(maxpool2x2(conv5x5 + bias)), as one compiled kernel for the CPU.

`source/` is the C++; `library` compiles it, finds it and opens it. `kernel` loads it for training, with `layer` as its
face to Paddle and `selfcheck` comparing it with Paddle's operators; `arrays` loads it for predictions, without Paddle.
`python -m core.training.fused.build` compiles ahead of time for machines without a compiler.
"""
