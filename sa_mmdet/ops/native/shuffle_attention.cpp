// The fused operator on CPUs: shuffle attention of scale * x + shift, with the end of a residual block.
//
// The formulas and the names are those of sa_mmdet/ops/cpu.py. A row comes from memory once per pass over the tensors:
// the statistics are computed first, and the row is still in cache when they are applied. Each row writes its own sums,
// so that the results do not depend on the number of threads.

#include "shuffle_attention.h"

#include "pointwise.h"

#include <ATen/Dispatch.h>
#include <ATen/ops/empty_like.h>

namespace sa_mmdet {
namespace {

// What is the same for all positions of a row.
template <typename A>
struct Channel {
  bool spatial;  // the branch
  A scale, shift;
  A weight, bias;  // of the gate's logit
  A norm_weight, norm_bias, norm_mean, norm_rstd;
  A identity_scale, identity_shift;
  A mean_weight;  // what the mean of x adds to the spatial branch's logit; 0 but in the baked form
};

template <typename T, typename A, bool RESIDUAL>
INLINE void forward_row(
    const T* __restrict x, const T* __restrict identity, T* __restrict out, int64_t length, Channel<A> channel, A eps,
    A* mean, A* rstd, A* added) {
  const A m = mean_of_row<T, A>(x, length);
  *mean = m;
  if (!channel.spatial) {
    const A gate = sigmoid(channel.weight * (channel.scale * m + channel.shift) + channel.bias);
    const A factor = gate * channel.scale, summand = gate * channel.shift;
    double squares = 0;
    for (int64_t begin = 0; begin < length; begin += BLOCK) {
      const int64_t end = std::min(begin + BLOCK, length);
      A part = 0;
#pragma omp simd reduction(+ : part)
      for (int64_t i = begin; i < end; ++i) {
        const A y = A(x[i]) * factor + summand;
        if (RESIDUAL) {
          const A other = A(identity[i]) * channel.identity_scale + channel.identity_shift;
          part += other * other + (y - y);
          out[i] = T(relu(y + other));
        } else {
          out[i] = T(y);
        }
      }
      squares += part;
    }
    *added = std::sqrt(A(squares / length));
    return;
  }
  double squares = 0;
  for (int64_t begin = 0; begin < length; begin += BLOCK) {
    const int64_t end = std::min(begin + BLOCK, length);
    A part = 0;
#pragma omp simd reduction(+ : part)
    for (int64_t i = begin; i < end; ++i) {
      const A d = channel.scale * (A(x[i]) - m);
      part += d * d;
    }
    squares += part;
  }
  *rstd = A(1) / std::sqrt(A(squares / length) + eps);
  const A slope = A(NEGATIVE_LOG2_E) * (channel.weight * *rstd * channel.scale);
  const A centre = channel.scale * m + channel.shift;
  const A logit = channel.mean_weight == A(0) ? channel.bias : channel.bias + channel.mean_weight * m;
  const A bias = A(NEGATIVE_LOG2_E) * logit;
#pragma omp simd
  for (int64_t i = 0; i < length; ++i) {
    const A d = A(x[i]) - m;
    const A y = times_sigmoid(channel.scale * d + centre, slope * d + bias);
    out[i] = T(RESIDUAL ? relu(y + (A(identity[i]) * channel.identity_scale + channel.identity_shift)) : y);
  }
}

// The sums over a row that the gradients of the vectors need.
template <typename A>
struct Sums {
  A grad_y, grad_y_normalised;  // normalised by the batch norm
  A grad_logit, grad_logit_normalised;
};

// Without x (in the channel branch, with RESIDUAL), y * gate is what out has more than the identity; the identity is
// read only then.
template <typename T, typename A, bool RESIDUAL, bool WITH_X>
INLINE void channel_backward_row(
    const T* __restrict grad_out, const T* __restrict x, const T* __restrict out, const T* __restrict identity,
    T* __restrict grad_x, T* __restrict grad_identity, int64_t length, Channel<A> channel, A mean, Sums<A>* sums) {
  const A gate = sigmoid(channel.weight * (channel.scale * mean + channel.shift) + channel.bias);
  double sum = 0, sum_y = 0;
  for (int64_t begin = 0; begin < length; begin += BLOCK) {
    const int64_t end = std::min(begin + BLOCK, length);
    A part = 0, part_y = 0;
#pragma omp simd reduction(+ : part, part_y)
    for (int64_t i = begin; i < end; ++i) {
      const A z = RESIDUAL ? before_relu(A(grad_out[i]), A(out[i])) : A(grad_out[i]);
      part += z;
      if (WITH_X) {
        part_y += z * (A(x[i]) - channel.norm_mean);
      } else {
        part_y += z * (A(out[i]) - (A(identity[i]) * channel.identity_scale + channel.identity_shift));
      }
    }
    sum += part;
    sum_y += part_y;
  }
  const A sum_normalised = WITH_X ? A(sum_y) * channel.norm_rstd
                                  : (A(sum_y) / gate - channel.norm_bias * A(sum)) / channel.norm_weight;
  const A grad_gate = channel.norm_weight * sum_normalised + channel.norm_bias * A(sum);
  sums->grad_logit = grad_gate * gate * (A(1) - gate);
  sums->grad_logit_normalised = 0;
  const A grad_mean = sums->grad_logit * channel.weight;
  sums->grad_y = gate * A(sum) + grad_mean;
  sums->grad_y_normalised = gate * sum_normalised + grad_mean * ((mean - channel.norm_mean) * channel.norm_rstd);
  const A factor = channel.scale * gate, summand = channel.scale * grad_mean / A(length);
#pragma omp simd
  for (int64_t i = 0; i < length; ++i) {
    const A z = RESIDUAL ? before_relu(A(grad_out[i]), A(out[i])) : A(grad_out[i]);
    if (RESIDUAL) grad_identity[i] = T(z * channel.identity_scale);
    grad_x[i] = T(z * factor + summand);
  }
}

template <typename T, typename A, bool RESIDUAL>
INLINE void spatial_backward_row(
    const T* __restrict grad_out, const T* __restrict x, const T* __restrict out, T* __restrict grad_x,
    T* __restrict grad_identity, int64_t length, Channel<A> channel, A mean, A rstd, A* __restrict scratch,
    Sums<A>* sums) {
  A* __restrict gated = scratch;
  A* __restrict logit = scratch + length;
  const A centre = channel.scale * mean + channel.shift;
  const A slope = A(NEGATIVE_LOG2_E) * channel.weight, bias = A(NEGATIVE_LOG2_E) * channel.bias;
  double sum_logit = 0, sum_normalised = 0;
  for (int64_t begin = 0; begin < length; begin += BLOCK) {
    const int64_t end = std::min(begin + BLOCK, length);
    A part = 0, part_normalised = 0;
#pragma omp simd reduction(+ : part, part_normalised)
    for (int64_t i = begin; i < end; ++i) {
      const A z = RESIDUAL ? before_relu(A(grad_out[i]), A(out[i])) : A(grad_out[i]);
      if (RESIDUAL) grad_identity[i] = T(z * channel.identity_scale);
      const A d = channel.scale * (A(x[i]) - mean);
      const A normalised = rstd * d;
      const A gate = times_sigmoid(A(1), slope * normalised + bias);
      const A grad_logit = z * (d + centre) * gate * (A(1) - gate);
      gated[i] = z * gate;
      logit[i] = grad_logit;
      part += grad_logit;
      part_normalised += grad_logit * normalised;
    }
    sum_logit += part;
    sum_normalised += part_normalised;
  }
  sums->grad_logit = A(sum_logit);
  sums->grad_logit_normalised = A(sum_normalised);
  const A mean_logit = A(sum_logit / length), projection = A(sum_normalised / length) * rstd;
  const A factor = rstd * channel.weight;
  double sum = 0, sum_x = 0;
  for (int64_t begin = 0; begin < length; begin += BLOCK) {
    const int64_t end = std::min(begin + BLOCK, length);
    A part = 0, part_x = 0;
#pragma omp simd reduction(+ : part, part_x)
    for (int64_t i = begin; i < end; ++i) {
      const A wide = A(x[i]);
      const A d = channel.scale * (wide - mean);
      const A grad_y = gated[i] + factor * (logit[i] - mean_logit - d * projection);
      grad_x[i] = T(channel.scale * grad_y);
      part += grad_y;
      part_x += grad_y * (wide - channel.norm_mean);
    }
    sum += part;
    sum_x += part_x;
  }
  sums->grad_y = A(sum);
  sums->grad_y_normalised = A(sum_x) * channel.norm_rstd;
}

// The functions that are compiled for several processors must not be templates.
#define FORWARD_ROW(CLONED, NAME, T, A, RESIDUAL)                                                                 \
  CLONED void NAME(                                                                                               \
      const T* x, const T* identity, T* out, int64_t length, Channel<A> channel, A eps, A* mean, A* rstd,         \
      A* added) {                                                                                                 \
    forward_row<T, A, RESIDUAL>(x, identity, out, length, channel, eps, mean, rstd, added);                       \
  }
#define BACKWARD_ROW(CLONED, NAME, T, A, RESIDUAL)                                                                \
  CLONED void NAME(                                                                                               \
      const T* grad_out, const T* x, const T* out, const T* identity, T* grad_x, T* grad_identity, int64_t length, \
      Channel<A> channel, A mean, A rstd, A* scratch, Sums<A>* sums) {                                            \
    if (channel.spatial) {                                                                                        \
      spatial_backward_row<T, A, RESIDUAL>(                                                                       \
          grad_out, x, out, grad_x, grad_identity, length, channel, mean, rstd, scratch, sums);                   \
    } else if (!RESIDUAL || x != nullptr) {                                                                       \
      channel_backward_row<T, A, RESIDUAL, true>(                                                                 \
          grad_out, x, out, identity, grad_x, grad_identity, length, channel, mean, sums);                        \
    } else {                                                                                                      \
      channel_backward_row<T, A, RESIDUAL, !RESIDUAL>(                                                            \
          grad_out, x, out, identity, grad_x, grad_identity, length, channel, mean, sums);                        \
    }                                                                                                             \
  }
#define SHUFFLE_ROWS(CLONED, T, A, SUFFIX)                                            \
  FORWARD_ROW(CLONED, forward_alone_##SUFFIX, T, A, false)                    \
  FORWARD_ROW(CLONED, forward_residual_##SUFFIX, T, A, true)                  \
  BACKWARD_ROW(CLONED, backward_alone_##SUFFIX, T, A, false)                  \
  BACKWARD_ROW(CLONED, backward_residual_##SUFFIX, T, A, true)                \
  template <>                                                                 \
  struct ShuffleRows<T> {                                                            \
    static auto forward(bool residual) {                                      \
      return residual ? forward_residual_##SUFFIX : forward_alone_##SUFFIX;   \
    }                                                                         \
    static auto backward(bool residual) {                                     \
      return residual ? backward_residual_##SUFFIX : backward_alone_##SUFFIX; \
    }                                                                         \
  };

template <typename T>
struct ShuffleRows;
SHUFFLE_ROWS(CLONES, float, float, f32)
SHUFFLE_ROWS(, double, double, f64)
SHUFFLE_ROWS(CLONES, c10::BFloat16, float, bf16)
SHUFFLE_ROWS(, c10::Half, float, f16)

// The channels, their vectors and where they are in the shuffled maps.
template <typename A>
struct Layout {
  int64_t channels, k;
  NormNumbers<A> norm, identity;
  std::vector<A> parameters;

  // Args: parameters: 6 x K.
  Layout(int64_t channels_, const Norm& norm_, const Norm& identity_, const Tensor& parameters_)
      : channels(channels_), k(parameters_.size(1)), norm(norm_, channels_), identity(identity_, channels_) {
    const Tensor wide = parameters_.detach().to(c10::CppTypeToScalarType<A>::value).contiguous();
    parameters.assign(wide.template const_data_ptr<A>(), wide.template const_data_ptr<A>() + wide.numel());
  }

  Channel<A> channel(int64_t c) const {
    const int64_t j = c % k, o = shuffled(c);
    Channel<A> found{c / k % 2 == 1,    norm.scale[c],    norm.shift[c],    parameters[j],     parameters[k + j],
                     norm.weight[c],    norm.bias[c],     norm.mean[c],     norm.rstd[c],      identity.scale[o],
                     identity.shift[o], A(0)};
    if (found.spatial) {
      const A spatial_weight = parameters[2 * k + j], spatial_bias = parameters[3 * k + j];
      found.weight = spatial_weight * parameters[4 * k + j];
      found.bias = spatial_weight * parameters[5 * k + j] + spatial_bias;
    }
    return found;
  }

  int64_t shuffled(int64_t c) const { return c < channels / 2 ? 2 * c : 2 * c - channels + 1; }

  // The place of a channel of the spatial branch among the C / 2 of an image.
  int64_t spatial(int64_t c) const { return c / (2 * k) * k + c % k; }
};

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor> shuffle_forward(
    const Tensor& x, const MaybeTensor& identity, const Norm& norm, const Norm& identity_norm, const Tensor& parameters,
    double eps) {
  const int64_t n = x.size(0), channels = x.size(1), length = positions(x);
  check(x, x);
  if (identity) check(x, *identity);
  Tensor out = at::empty_like(x), mean = at::empty({n, channels}, numbers(x));
  Tensor rstd = at::empty({n, channels / 2}, numbers(x)), added = at::empty({n, channels}, numbers(x));
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kBFloat16, at::kHalf, x.scalar_type(), "shuffle_attention", [&] {
    using A = Wide<scalar_t>::type;
    const Layout<A> layout(channels, norm, identity_norm, parameters);
    const auto row = ShuffleRows<scalar_t>::forward(identity.has_value());
    const scalar_t* from = x.const_data_ptr<scalar_t>();
    const scalar_t* add = identity ? identity->const_data_ptr<scalar_t>() : nullptr;
    scalar_t* to = out.mutable_data_ptr<scalar_t>();
    A *means = mean.mutable_data_ptr<A>(), *rstds = rstd.mutable_data_ptr<A>(), *adds = added.mutable_data_ptr<A>();
    at::parallel_for(0, n * channels, grain(length), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t image = i / channels, c = i % channels;
        const int64_t target = (image * channels + layout.shuffled(c)) * length;
        A unused;
        A* own_rstd = c / layout.k % 2 ? rstds + image * (channels / 2) + layout.spatial(c) : &unused;
        adds[i] = 0;
        row(from + i * length, add ? add + target : nullptr, to + target, length, layout.channel(c), A(eps),
            means + i, own_rstd, adds + i);
      }
    });
  });
  return {out, mean, rstd, added};
}

Tensor baked_forward(
    const Tensor& x, const Tensor& identity, const Tensor& weight, const Tensor& norm_weight, const Tensor& norm_bias,
    double eps) {
  const int64_t n = x.size(0), channels = x.size(1), length = positions(x);
  check(x, x);
  check(x, identity);
  Tensor out = at::empty_like(x);
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kBFloat16, at::kHalf, x.scalar_type(), "baked_attention", [&] {
    using A = Wide<scalar_t>::type;
    const std::vector<A> by_mean = elements<A>(weight, channels, 0), by_position = elements<A>(norm_weight, channels, 0);
    const std::vector<A> bias = elements<A>(norm_bias, channels, 0);
    const auto row = ShuffleRows<scalar_t>::forward(true);
    const scalar_t *from = x.const_data_ptr<scalar_t>(), *add = identity.const_data_ptr<scalar_t>();
    scalar_t* to = out.mutable_data_ptr<scalar_t>();
    at::parallel_for(0, n * channels, grain(length), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t c = i % channels;
        const bool spatial = by_position[c] != A(0);
        const Channel<A> channel{spatial, 1,       0, spatial ? by_position[c] : by_mean[c],
                                 bias[c], 1,       0, 0,
                                 1,       1,       0, spatial ? by_mean[c] : A(0)};
        A mean, rstd, added;
        row(from + i * length, add + i * length, to + i * length, length, channel, A(eps), &mean, &rstd, &added);
      }
    });
  });
  return out;
}

Kept shuffle_keep(
    const Tensor& x, const Tensor& mean, const Tensor& added, const Norm& norm, const Tensor& parameters) {
  const int64_t n = x.size(0), channels = x.size(1);
  std::vector<char> flags(n * channels);
  const bool half = x.element_size() == 2;
  AT_DISPATCH_FLOATING_TYPES(mean.scalar_type(), "shuffle_attention_keep", [&] {
    const Layout<scalar_t> layout(channels, norm, Norm(), parameters);
    const scalar_t *means = mean.const_data_ptr<scalar_t>(), *adds = added.const_data_ptr<scalar_t>();
    for (int64_t i = 0; i < n * channels; ++i) {
      const Channel<scalar_t> channel = layout.channel(i % channels);
      const scalar_t gate = sigmoid(channel.weight * (channel.scale * means[i] + channel.shift) + channel.bias);
      flags[i] = channel.spatial || !recoverable(gate, channel.norm_weight, channel.norm_bias, adds[i], half);
    }
  });
  return keep_rows(x, flags);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> shuffle_backward(
    const Tensor& grad_out, const Kept& x, const MaybeTensor& out, const MaybeTensor& identity, const Tensor& mean,
    const Tensor& rstd, const Norm& norm, const Norm& identity_norm, const Tensor& parameters) {
  const int64_t n = grad_out.size(0), channels = grad_out.size(1), length = positions(grad_out);
  check(grad_out, grad_out);
  if (out) check(grad_out, *out);
  if (identity) check(grad_out, *identity);
  if (!x.places) check(grad_out, x.rows);
  Tensor grad_x = at::empty_like(grad_out);
  Tensor grad_identity = out ? at::empty_like(grad_out) : at::empty({0}, grad_out.options());
  Tensor sums = at::empty({4, n, channels}, mean.options());
  const bool normed = identity && identity_norm.weight;
  Tensor identity_sums = at::empty({2, normed ? n : 0, channels}, mean.options());
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kBFloat16, at::kHalf, grad_out.scalar_type(), "shuffle_attention_backward", [&] {
    using A = Wide<scalar_t>::type;
    const Layout<A> layout(channels, norm, identity_norm, parameters);
    const auto row = ShuffleRows<scalar_t>::backward(out.has_value());
    const scalar_t* grad = grad_out.const_data_ptr<scalar_t>();
    const scalar_t* result = out ? out->const_data_ptr<scalar_t>() : nullptr;
    const scalar_t* other = identity ? identity->const_data_ptr<scalar_t>() : nullptr;
    scalar_t* to = grad_x.mutable_data_ptr<scalar_t>();
    scalar_t* to_identity = out ? grad_identity.mutable_data_ptr<scalar_t>() : nullptr;
    const A *means = mean.const_data_ptr<A>(), *rstds = rstd.const_data_ptr<A>();
    A *totals = sums.mutable_data_ptr<A>(), *identity_totals = identity_sums.mutable_data_ptr<A>();
    at::parallel_for(0, n * channels, grain(length), [&](int64_t begin, int64_t end) {
      std::vector<A> scratch(2 * length);
      for (int64_t i = begin; i < end; ++i) {
        const int64_t image = i / channels, c = i % channels;
        const int64_t target = (image * channels + layout.shuffled(c)) * length;
        const A own_rstd = c / layout.k % 2 ? rstds[image * (channels / 2) + layout.spatial(c)] : A(0);
        if (normed) {
          const int64_t j = target / length, o = layout.shuffled(c);
          masked_sums(
              grad + target, result + target, other + target, length, layout.identity.mean[o], identity_totals + j,
              identity_totals + n * channels + j);
          identity_totals[n * channels + j] *= layout.identity.rstd[o];
        }
        Sums<A> own;
        row(grad + target, x.row<scalar_t>(i, length), result ? result + target : nullptr,
            other ? other + target : nullptr, to + i * length, to_identity ? to_identity + target : nullptr, length,
            layout.channel(c), means[i], own_rstd, scratch.data(), &own);
        totals[i] = own.grad_y;
        totals[n * channels + i] = own.grad_y_normalised;
        totals[2 * n * channels + i] = own.grad_logit;
        totals[3 * n * channels + i] = own.grad_logit_normalised;
      }
    });
  });
  return {grad_x, grad_identity, sums, identity_sums};
}

}  // namespace sa_mmdet
