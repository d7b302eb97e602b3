// The largest elements and the means of batch norms' results, over positions and over channels, without the results; and
// the max pooling of ResNet's stem.

#pragma once

#include <tuple>

#include "rows.h"

namespace sa_mmdet {

// For each image and channel the mean of x, the element of x whose norm is the largest (the least one where the norm's
// scale is negative), both N x C in the dtype of the arithmetic, and the position of the latter.
std::tuple<Tensor, Tensor, Tensor> row_pools_forward(const Tensor& x, const Norm& norm);

// The largest element and the mean over the channels of gate * norm(x), N x 2 x H x W in the dtype of the arithmetic,
// and the channel of the largest, N x 1 x H x W. The gate is N x C.
std::tuple<Tensor, Tensor> channel_pools_forward(const Tensor& x, const Norm& norm, const Tensor& gate);

// Returns grad_x with the gradient of x added, and for each image and channel the sums of dL/dy and of dL/dy times the
// normalised x, without the gate (2 x N x C).
std::tuple<Tensor, Tensor> channel_pools_backward(
    const Tensor& grad_pools, const Tensor& grad_x, const Tensor& x, const Tensor& channels_of_largest,
    const Norm& norm, const Tensor& gate);

// The largest of 3 x 3 positions around every second one, the first included: max pooling with padding 1 and stride 2.
// There are no derivatives, for which PyTorch's own looks for the places of the largest.
Tensor max_pool(const Tensor& x);

}  // namespace sa_mmdet
