// Shuffle attention of scale * x + shift, with the end of a residual block.

#pragma once

#include <tuple>

#include "rows.h"

namespace sa_mmdet {

// Returns the output, the means of x (N x C), the spatial branch's rstd (N x C/2), and the root mean square of what was
// added to each channel of the channel branch (N x C).
std::tuple<Tensor, Tensor, Tensor, Tensor> shuffle_forward(
    const Tensor& x, const MaybeTensor& identity, const Norm& norm, const Norm& identity_norm, const Tensor& parameters,
    double eps);

// relu(identity + x * sigmoid(norm_weight * normalised x + norm_bias + weight * mean of x)), where x is normalised in each
// channel of each image; the three vectors are of C elements. For inference: there are no derivatives.
Tensor baked_forward(
    const Tensor& x, const Tensor& identity, const Tensor& weight, const Tensor& norm_weight, const Tensor& norm_bias,
    double eps);

// The rows of x that the gradients need: those of the spatial branch, and those that out does not give.
Kept shuffle_keep(
    const Tensor& x, const Tensor& mean, const Tensor& added, const Norm& norm, const Tensor& parameters);

// Returns the gradients of x and identity, and for each image and channel four sums (4 x N x C): of dL/dy, of dL/dy
// times y normalised by the batch norm, of dL/dlogit, and of dL/dlogit times the logit's normalised input; then
// the sums of :func:`masked_sums` for the identity (2 x N x C), where that has a norm.
std::tuple<Tensor, Tensor, Tensor, Tensor> shuffle_backward(
    const Tensor& grad_out, const Kept& x, const MaybeTensor& out, const MaybeTensor& identity, const Tensor& mean,
    const Tensor& rstd, const Norm& norm, const Norm& identity_norm, const Tensor& parameters);

}  // namespace sa_mmdet
