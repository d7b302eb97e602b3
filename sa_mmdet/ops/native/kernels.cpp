// All kernels in one unit: the compiler reads PyTorch's headers once, which takes as long as compiling a file.

#include "pointwise.cpp"
#include "pools.cpp"
#include "shuffle_attention.cpp"
