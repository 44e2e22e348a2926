# SPDX-License-Identifier: Apache-2.0
"""3x3 convolutions by Winograd's algorithm, compiled by LLVM when they are needed.

oneDNN's direct kernels run near the processor's peak. What is faster has less to do:
transforms.py has the matrices that make of 9 multiplications 2.25 or 4. choice.py says
which layers they pay for, and is the way in. kernel.py describes a layer's kernel as
onednn.py does oneDNN's, and packs its weights; functions.py writes its native functions
in the language of llvm.py. Only those two need llvmlite.
"""
