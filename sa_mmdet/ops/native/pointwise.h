// Batch norms in evaluation mode with what follows them in a residual block: a ReLU, or a gate, an addition and a ReLU.

#pragma once

#include <tuple>

#include "rows.h"

namespace sa_mmdet {

// relu(norm(x)), and for each row (N x C) 0 if its numbers are finite, otherwise not a number.
std::tuple<Tensor, Tensor> norm_relu_forward(const Tensor& x, const Norm& norm);

// The rows of x that relu(norm(x)) does not give again.
Kept norm_relu_keep(const Tensor& x, const Tensor& differences, const Norm& norm);

// Returns the gradient of x and, for each image and channel, the sums of dL/dy and of dL/dy times the normalised x.
std::tuple<Tensor, Tensor> norm_relu_backward(
    const Tensor& grad_out, const Tensor& out, const Kept& x, const Norm& norm);

// What multiplies the normed x: a number for each image and channel (N x C), and one for each position of each of G
// groups of channels (N x G x H x W). Each may be missing.
struct Gates {
  MaybeTensor channel, position;
};

// relu(identity_norm(identity) + gates * norm(x)), and the root mean square of what was added to each row (N x C),
// which is not a number where x is not finite.
std::tuple<Tensor, Tensor> residual_forward(
    const Tensor& x, const Tensor& identity, const Norm& norm, const Norm& identity_norm, const Gates& gates);

// The rows of x that the gradients need.
Kept residual_keep(const Tensor& x, const Tensor& added, const Norm& norm, const Gates& gates);

// Returns the gradients of x, of identity and of the position's gates, and for each image and channel the sums of dL/dy
// and of dL/dy times the normalised x, without the channel's gate (2 x N x C); then the sums of :func:`masked_sums` for
// the identity, where that has a norm.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> residual_backward(
    const Tensor& grad_out, const Tensor& out, const Kept& x, const Tensor& identity, const Norm& norm,
    const Norm& identity_norm, const Gates& gates);

// The means of x over its positions, N x C in the dtype of the arithmetic.
Tensor row_means(const Tensor& x);

// Sums of a row of the gradient where out is positive, and of its products with x - mean.
template <typename T>
void masked_sums(
    const T* grad_out, const T* out, const T* x, int64_t length, typename Wide<T>::type mean,
    typename Wide<T>::type* sum, typename Wide<T>::type* sum_x);

}  // namespace sa_mmdet
