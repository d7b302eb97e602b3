// Batch norms in evaluation mode with what follows them in a residual block: see pointwise.h.

#include "pointwise.h"

#include <ATen/Dispatch.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>

namespace sa_mmdet {
namespace {

// z below is the gradient before the ReLU. The difference is 0 for a row of finite numbers, otherwise not a number.
template <typename T, typename A>
INLINE void norm_relu_row(const T* __restrict x, T* __restrict out, int64_t length, A scale, A shift, A* difference) {
  A part = 0;
#pragma omp simd reduction(+ : part)
  for (int64_t i = 0; i < length; ++i) {
    const A y = A(x[i]) * scale + shift;
    part += y - y;
    out[i] = T(relu(y));
  }
  *difference = part;
}

// The sum of the second is z * x - z * mean with x, z * out without.
template <typename T, typename A, bool WITH_X>
INLINE void norm_relu_backward_row(
    const T* __restrict grad_out, const T* __restrict out, const T* __restrict x, T* __restrict grad_x, int64_t length,
    A scale, A mean, A* sum, A* sum_y) {
  double total = 0, total_y = 0;
  for (int64_t begin = 0; begin < length; begin += BLOCK) {
    const int64_t end = std::min(begin + BLOCK, length);
    A part = 0, part_y = 0;
#pragma omp simd reduction(+ : part, part_y)
    for (int64_t i = begin; i < end; ++i) {
      const A z = before_relu(A(grad_out[i]), A(out[i]));
      grad_x[i] = T(z * scale);
      part += z;
      part_y += z * (WITH_X ? A(x[i]) - mean : A(out[i]));
    }
    total += part;
    total_y += part_y;
  }
  *sum = A(total);
  *sum_y = A(total_y);
}

// What is the same for all positions of a row of a block's end.
template <typename A>
struct Ends {
  A factor, summand;  // of x, with the channel's gate
  A identity_scale, identity_shift;
  A norm_mean;
};

template <typename T, typename A, bool POSITION>
INLINE void residual_row(
    const T* __restrict x, const T* __restrict identity, const A* __restrict gate, T* __restrict out, int64_t length,
    Ends<A> ends, A* added) {
  double squares = 0;
  for (int64_t begin = 0; begin < length; begin += BLOCK) {
    const int64_t end = std::min(begin + BLOCK, length);
    A part = 0;
#pragma omp simd reduction(+ : part)
    for (int64_t i = begin; i < end; ++i) {
      A y = A(x[i]) * ends.factor + ends.summand;
      if (POSITION) y *= gate[i];
      const A other = A(identity[i]) * ends.identity_scale + ends.identity_shift;
      part += other * other + (y - y);
      out[i] = T(relu(y + other));
    }
    squares += part;
  }
  *added = std::sqrt(A(squares / length));
}

// Without x, gates * y is what out has more than the identity.
template <typename T, typename A, bool WITH_X, bool POSITION>
INLINE void residual_backward_row(
    const T* __restrict grad_out, const T* __restrict out, const T* __restrict x, const T* __restrict identity,
    const A* __restrict gate, T* __restrict grad_x, T* __restrict grad_identity, A* __restrict grad_gate,
    int64_t length, A grad_factor, Ends<A> ends, A* sum, A* sum_y) {
  double total = 0, total_y = 0;
  for (int64_t begin = 0; begin < length; begin += BLOCK) {
    const int64_t end = std::min(begin + BLOCK, length);
    A part = 0, part_y = 0;
#pragma omp simd reduction(+ : part, part_y)
    for (int64_t i = begin; i < end; ++i) {
      const A z = before_relu(A(grad_out[i]), A(out[i]));
      grad_identity[i] = T(z * ends.identity_scale);
      A grad_y = z;
      if (POSITION) {
        grad_gate[i] += z * (A(x[i]) * ends.factor + ends.summand);
        grad_y *= gate[i];
      }
      grad_x[i] = T(grad_y * grad_factor);
      part += grad_y;
      if (WITH_X) {
        part_y += grad_y * (A(x[i]) - ends.norm_mean);
      } else {
        part_y += grad_y * (A(out[i]) - (A(identity[i]) * ends.identity_scale + ends.identity_shift));
      }
    }
    total += part;
    total_y += part_y;
  }
  *sum = A(total);
  *sum_y = A(total_y);
}

template <typename T, typename A>
INLINE void masked_sums_row(
    const T* __restrict grad_out, const T* __restrict out, const T* __restrict x, int64_t length, A mean, A* sum,
    A* sum_x) {
  double total = 0, total_x = 0;
  for (int64_t begin = 0; begin < length; begin += BLOCK) {
    const int64_t end = std::min(begin + BLOCK, length);
    A part = 0, part_x = 0;
#pragma omp simd reduction(+ : part, part_x)
    for (int64_t i = begin; i < end; ++i) {
      const A z = before_relu(A(grad_out[i]), A(out[i]));
      part += z;
      part_x += z * (A(x[i]) - mean);
    }
    total += part;
    total_x += part_x;
  }
  *sum = A(total);
  *sum_x = A(total_x);
}

// The functions that are compiled for several processors must not be templates.
#define POINTWISE_ROWS(CLONED, T, A, SUFFIX)                                                                                   \
  CLONED void norm_relu_##SUFFIX(const T* x, T* out, int64_t length, A scale, A shift, A* difference) {                             \
    norm_relu_row<T, A>(x, out, length, scale, shift, difference);                                                               \
  }                                                                                                                  \
  CLONED void norm_relu_backward_##SUFFIX(                                                                           \
      const T* grad_out, const T* out, const T* x, T* grad_x, int64_t length, A scale, A mean, A* sum, A* sum_y) {   \
    if (x != nullptr) {                                                                                              \
      norm_relu_backward_row<T, A, true>(grad_out, out, x, grad_x, length, scale, mean, sum, sum_y);                 \
    } else {                                                                                                         \
      norm_relu_backward_row<T, A, false>(grad_out, out, x, grad_x, length, scale, mean, sum, sum_y);                \
    }                                                                                                                \
  }                                                                                                                  \
  CLONED void residual_##SUFFIX(                                                                                     \
      const T* x, const T* identity, const A* gate, T* out, int64_t length, Ends<A> ends, A* added) {                \
    if (gate != nullptr) {                                                                                           \
      residual_row<T, A, true>(x, identity, gate, out, length, ends, added);                                         \
    } else {                                                                                                         \
      residual_row<T, A, false>(x, identity, gate, out, length, ends, added);                                        \
    }                                                                                                                \
  }                                                                                                                  \
  CLONED void residual_backward_##SUFFIX(                                                                            \
      const T* grad_out, const T* out, const T* x, const T* identity, const A* gate, T* grad_x, T* grad_identity,    \
      A* grad_gate, int64_t length, A grad_factor, Ends<A> ends, A* sum, A* sum_y) {                                 \
    if (gate != nullptr) {                                                                                           \
      residual_backward_row<T, A, true, true>(                                                                       \
          grad_out, out, x, identity, gate, grad_x, grad_identity, grad_gate, length, grad_factor, ends, sum, sum_y); \
    } else if (x != nullptr) {                                                                                       \
      residual_backward_row<T, A, true, false>(                                                                      \
          grad_out, out, x, identity, gate, grad_x, grad_identity, grad_gate, length, grad_factor, ends, sum, sum_y); \
    } else {                                                                                                         \
      residual_backward_row<T, A, false, false>(                                                                     \
          grad_out, out, x, identity, gate, grad_x, grad_identity, grad_gate, length, grad_factor, ends, sum, sum_y); \
    }                                                                                                                \
  }                                                                                                                  \
  CLONED void masked_sums_##SUFFIX(                                                                                  \
      const T* grad_out, const T* out, const T* x, int64_t length, A mean, A* sum, A* sum_x) {                       \
    masked_sums_row<T, A>(grad_out, out, x, length, mean, sum, sum_x);                                               \
  }                                                                                                                  \
  CLONED void mean_##SUFFIX(const T* x, int64_t length, A* mean) { *mean = mean_of_row<T, A>(x, length); }           \
  template <>                                                                                                        \
  struct PointwiseRows<T> {                                                                                                   \
    static constexpr auto norm_relu = norm_relu_##SUFFIX;                                                            \
    static constexpr auto norm_relu_backward = norm_relu_backward_##SUFFIX;                                          \
    static constexpr auto residual = residual_##SUFFIX;                                                              \
    static constexpr auto residual_backward = residual_backward_##SUFFIX;                                            \
    static constexpr auto masked_sums = masked_sums_##SUFFIX;                                                        \
    static constexpr auto mean = mean_##SUFFIX;                                                                      \
  };

template <typename T>
struct PointwiseRows;
POINTWISE_ROWS(CLONES, float, float, f32)
POINTWISE_ROWS(, double, double, f64)
POINTWISE_ROWS(CLONES, c10::BFloat16, float, bf16)
POINTWISE_ROWS(, c10::Half, float, f16)

// The gates in the dtype of the arithmetic.
template <typename A>
struct GateNumbers {
  Tensor channel, position;
  int64_t channels, groups = 1;

  GateNumbers(const Gates& gates, int64_t channels_) : channels(channels_) {
    const auto dtype = c10::CppTypeToScalarType<A>::value;
    if (gates.channel) channel = gates.channel->detach().to(dtype).contiguous();
    if (gates.position) {
      position = gates.position->detach().to(dtype).contiguous();
      groups = position.size(1);
      TORCH_CHECK(groups > 0 && channels % groups == 0, groups, " groups of gates for ", channels, " channels");
    }
  }

  A of_channel(int64_t i) const { return channel.defined() ? channel.template const_data_ptr<A>()[i] : A(1); }

  const A* of_positions(int64_t i, int64_t length) const {
    if (!position.defined()) return nullptr;
    const int64_t image = i / channels, group = i % channels / (channels / groups);
    return position.template const_data_ptr<A>() + (image * groups + group) * length;
  }
};

void check_gates(const Tensor& x, const Gates& gates) {
  TORCH_CHECK(
      !gates.channel || gates.channel->numel() == x.size(0) * x.size(1), "expected a gate for each image and channel");
  TORCH_CHECK(
      !gates.position || (gates.position->size(0) == x.size(0) && gates.position->size(2) == x.size(2) &&
                          gates.position->size(3) == x.size(3)),
      "expected gates for the positions of the map");
}

}  // namespace

#define MASKED_SUMS(T, SUFFIX)                                                                            \
  template <>                                                                                             \
  void masked_sums<T>(                                                                                    \
      const T* grad_out, const T* out, const T* x, int64_t length, Wide<T>::type mean, Wide<T>::type* sum, \
      Wide<T>::type* sum_x) {                                                                             \
    masked_sums_##SUFFIX(grad_out, out, x, length, mean, sum, sum_x);                                     \
  }
MASKED_SUMS(float, f32)
MASKED_SUMS(double, f64)
MASKED_SUMS(c10::BFloat16, bf16)
MASKED_SUMS(c10::Half, f16)

void check(const Tensor& like, const Tensor& map) {
  TORCH_CHECK(
      map.device().is_cpu() && map.scalar_type() == like.scalar_type() && map.sizes() == like.sizes() &&
          map.is_contiguous(),
      "expected contiguous maps of one dtype and shape on the CPU");
}

Kept keep_rows(const Tensor& x, const std::vector<char>& flags) {
  const int64_t rows = static_cast<int64_t>(flags.size()), length = positions(x);
  Tensor places = at::empty({x.size(0), x.size(1)}, x.options().dtype(at::kLong));
  int64_t* place = places.mutable_data_ptr<int64_t>();
  int64_t count = 0;
  for (int64_t i = 0; i < rows; ++i) place[i] = flags[i] ? count++ : -1;
  Tensor kept = at::empty({count, length}, x.options());
  const size_t bytes = length * x.element_size();
  const char* from = static_cast<const char*>(x.const_data_ptr());
  char* to = static_cast<char*>(kept.mutable_data_ptr());
  at::parallel_for(0, rows, grain(length), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      if (place[i] >= 0) std::memcpy(to + place[i] * bytes, from + i * bytes, bytes);
    }
  });
  return {kept, places};
}

std::tuple<Tensor, Tensor> norm_relu_forward(const Tensor& x, const Norm& norm) {
  check(x, x);
  const int64_t channels = x.size(1), length = positions(x);
  Tensor out = at::empty_like(x), differences = at::empty({x.size(0), channels}, numbers(x));
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kBFloat16, at::kHalf, x.scalar_type(), "norm_relu", [&] {
    using A = Wide<scalar_t>::type;
    const NormNumbers<A> own(norm, channels);
    const scalar_t* from = x.const_data_ptr<scalar_t>();
    scalar_t* to = out.mutable_data_ptr<scalar_t>();
    A* difference = differences.mutable_data_ptr<A>();
    at::parallel_for(0, x.size(0) * channels, grain(length), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t c = i % channels;
        const int64_t at = i * length;
        PointwiseRows<scalar_t>::norm_relu(from + at, to + at, length, own.scale[c], own.shift[c], difference + i);
      }
    });
  });
  return {out, differences};
}

Kept norm_relu_keep(const Tensor& x, const Tensor& differences, const Norm& norm) {
  const int64_t channels = x.size(1);
  std::vector<char> flags(x.size(0) * channels);
  AT_DISPATCH_FLOATING_TYPES(differences.scalar_type(), "norm_relu_keep", [&] {
    const NormNumbers<scalar_t> own(norm, channels);
    const scalar_t* difference = differences.const_data_ptr<scalar_t>();
    for (size_t i = 0; i < flags.size(); ++i) {
      const size_t c = i % channels;
      flags[i] = !recoverable(scalar_t(1), own.weight[c], own.bias[c], difference[i], x.element_size() == 2);
    }
  });
  return keep_rows(x, flags);
}

std::tuple<Tensor, Tensor> norm_relu_backward(
    const Tensor& grad_out, const Tensor& out, const Kept& x, const Norm& norm) {
  check(out, out);
  check(out, grad_out);
  const int64_t n = out.size(0), channels = out.size(1), length = positions(out);
  Tensor grad_x = at::empty_like(out), sums = at::empty({2, n, channels}, numbers(out));
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kBFloat16, at::kHalf, out.scalar_type(), "norm_relu_backward", [&] {
    using A = Wide<scalar_t>::type;
    const NormNumbers<A> own(norm, channels);
    const scalar_t *grad = grad_out.const_data_ptr<scalar_t>(), *result = out.const_data_ptr<scalar_t>();
    scalar_t* to = grad_x.mutable_data_ptr<scalar_t>();
    A* totals = sums.mutable_data_ptr<A>();
    at::parallel_for(0, n * channels, grain(length), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t c = i % channels;
        const scalar_t* from = x.row<scalar_t>(i, length);
        A sum, sum_y;
        PointwiseRows<scalar_t>::norm_relu_backward(
            grad + i * length, result + i * length, from, to + i * length, length, own.scale[c], own.mean[c], &sum,
            &sum_y);
        totals[i] = sum;
        totals[n * channels + i] = from ? sum_y * own.rstd[c] : (sum_y - own.bias[c] * sum) / own.weight[c];
      }
    });
  });
  return {grad_x, sums};
}

std::tuple<Tensor, Tensor> residual_forward(
    const Tensor& x, const Tensor& identity, const Norm& norm, const Norm& identity_norm, const Gates& gates) {
  check(x, x);
  check(x, identity);
  check_gates(x, gates);
  const int64_t n = x.size(0), channels = x.size(1), length = positions(x);
  Tensor out = at::empty_like(x), added = at::empty({n, channels}, numbers(x));
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kBFloat16, at::kHalf, x.scalar_type(), "residual", [&] {
    using A = Wide<scalar_t>::type;
    const NormNumbers<A> own(norm, channels), other(identity_norm, channels);
    const GateNumbers<A> gate(gates, channels);
    const scalar_t *from = x.const_data_ptr<scalar_t>(), *add = identity.const_data_ptr<scalar_t>();
    scalar_t* to = out.mutable_data_ptr<scalar_t>();
    A* adds = added.mutable_data_ptr<A>();
    at::parallel_for(0, n * channels, grain(length), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t c = i % channels, at = i * length;
        const A a = gate.of_channel(i);
        const Ends<A> ends{a * own.scale[c], a * own.shift[c], other.scale[c], other.shift[c], own.mean[c]};
        PointwiseRows<scalar_t>::residual(from + at, add + at, gate.of_positions(i, length), to + at, length, ends, adds + i);
      }
    });
  });
  return {out, added};
}

Kept residual_keep(const Tensor& x, const Tensor& added, const Norm& norm, const Gates& gates) {
  if (gates.position) return {x, {}};
  const int64_t channels = x.size(1);
  std::vector<char> flags(x.size(0) * channels);
  AT_DISPATCH_FLOATING_TYPES(added.scalar_type(), "residual_keep", [&] {
    const NormNumbers<scalar_t> own(norm, channels);
    const GateNumbers<scalar_t> gate(gates, channels);
    const scalar_t* adds = added.const_data_ptr<scalar_t>();
    for (size_t i = 0; i < flags.size(); ++i) {
      const size_t c = i % channels;
      flags[i] = !recoverable(gate.of_channel(i), own.weight[c], own.bias[c], adds[i], x.element_size() == 2);
    }
  });
  return keep_rows(x, flags);
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> residual_backward(
    const Tensor& grad_out, const Tensor& out, const Kept& x, const Tensor& identity, const Norm& norm,
    const Norm& identity_norm, const Gates& gates) {
  check(out, out);
  check(out, grad_out);
  check(out, identity);
  check_gates(out, gates);
  const int64_t n = out.size(0), channels = out.size(1), length = positions(out);
  const bool normed = identity_norm.weight.has_value();
  Tensor grad_x = at::empty_like(out), grad_identity = at::empty_like(out);
  Tensor sums = at::empty({2, n, channels}, numbers(out));
  Tensor identity_sums = at::empty({2, normed ? n : 0, channels}, numbers(out));
  Tensor grad_position;
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kBFloat16, at::kHalf, out.scalar_type(), "residual_backward", [&] {
    using A = Wide<scalar_t>::type;
    const NormNumbers<A> own(norm, channels), other(identity_norm, channels);
    const GateNumbers<A> gate(gates, channels);
    // The gradient of a position's gate is a sum over channels: of parts that do not depend on the number of threads.
    const int64_t group = channels / gate.groups, part = gates.position ? std::min<int64_t>(group, 32) : 1;
    const int64_t parts = (group + part - 1) / part;
    Tensor partial = at::zeros({n * gate.groups, parts, gates.position ? length : 0}, numbers(out));
    const scalar_t *grad = grad_out.const_data_ptr<scalar_t>(), *result = out.const_data_ptr<scalar_t>();
    const scalar_t* add = identity.const_data_ptr<scalar_t>();
    scalar_t *to = grad_x.mutable_data_ptr<scalar_t>(), *to_identity = grad_identity.mutable_data_ptr<scalar_t>();
    A *totals = sums.mutable_data_ptr<A>(), *identity_totals = identity_sums.mutable_data_ptr<A>();
    A* to_position = partial.mutable_data_ptr<A>();
    const int64_t total = n * channels;
    at::parallel_for(0, n * gate.groups * parts, grain(part * length), [&](int64_t begin, int64_t end) {
      for (int64_t block = begin; block < end; ++block) {
        const int64_t first = block / parts * group, start = block % parts * part;
        for (int64_t i = first + start; i < first + std::min(start + part, group); ++i) {
          const int64_t c = i % channels, at = i * length;
          const scalar_t* from = x.row<scalar_t>(i, length);
          const A a = gate.of_channel(i);
          const Ends<A> ends{a * own.scale[c], a * own.shift[c], other.scale[c], other.shift[c], own.mean[c]};
          if (normed) {
            A *sum = identity_totals + i, *sum_x = identity_totals + total + i;
            PointwiseRows<scalar_t>::masked_sums(grad + at, result + at, add + at, length, other.mean[c], sum, sum_x);
            *sum_x *= other.rstd[c];
          }
          A sum, sum_y;
          PointwiseRows<scalar_t>::residual_backward(
              grad + at, result + at, from, add + at, gate.of_positions(i, length), to + at, to_identity + at,
              to_position + block * length, length, ends.factor, ends, &sum, &sum_y);
          totals[i] = sum;
          totals[total + i] = from ? sum_y * own.rstd[c] : (sum_y / a - own.bias[c] * sum) / own.weight[c];
        }
      }
    });
    if (gates.position) grad_position = partial.sum(1).view(gates.position->sizes());
  });
  return {grad_x, grad_identity, grad_position, sums, identity_sums};
}

Tensor row_means(const Tensor& x) {
  check(x, x);
  const int64_t length = positions(x);
  Tensor means = at::empty({x.size(0), x.size(1)}, numbers(x));
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kBFloat16, at::kHalf, x.scalar_type(), "row_means", [&] {
    using A = Wide<scalar_t>::type;
    const scalar_t* from = x.const_data_ptr<scalar_t>();
    A* to = means.mutable_data_ptr<A>();
    at::parallel_for(0, means.numel(), grain(length), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) PointwiseRows<scalar_t>::mean(from + i * length, length, to + i);
    });
  });
  return means;
}

}  // namespace sa_mmdet
