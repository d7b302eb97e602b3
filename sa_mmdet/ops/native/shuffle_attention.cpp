// The fused operator on CPUs: shuffle attention of scale * x + shift, with the end of a residual block.
//
// The formulas and the names are those of sa_mmdet/ops/cpu.py. A row is one channel of one image, L positions. It comes
// from memory once per pass over the tensors: the statistics are computed first, and the row is still in cache when
// they are applied. Each row writes its own sums, so that the results do not depend on the number of threads.

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <optional>
#include <tuple>
#include <vector>

namespace {

using at::Tensor;
using MaybeTensor = std::optional<Tensor>;

#define INLINE inline __attribute__((always_inline))

// One binary for all processors: the loader chooses the widest instructions that the processor has.
#if defined(__x86_64__) && defined(__linux__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__) && \
    !defined(SA_MMDET_DEFAULT_CLONE)
#define CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define CLONES
#endif

// Sums of this many elements are added in the dtype of the arithmetic, the sums of all blocks in double.
constexpr int64_t BLOCK = 2048;

INLINE float exponential(float z) {
  // Cephes' polynomial on [-ln 2 / 2, ln 2 / 2]. glibc's function is not vectorised without -ffast-math.
  z = z > 88.0f ? 88.0f : z;  // NaN passes both comparisons
  z = z < -87.0f ? -87.0f : z;
  const float rounded = z * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: the integer is in the lowest bits
  uint32_t bits;
  std::memcpy(&bits, &rounded, sizeof(bits));
  const float n = rounded - 12582912.0f;
  const float r = (z - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  bits = (bits + 127u) << 23;
  float power;
  std::memcpy(&power, &bits, sizeof(power));
  return p * power;
}

INLINE double exponential(double z) { return std::exp(z); }

template <typename A>
INLINE A sigmoid(A z) {
  return A(1) / (A(1) + exponential(-z));
}

template <typename A>
INLINE A relu(A z) {
  return z <= A(0) ? A(0) : z;  // NaN stays NaN
}

// What is the same for all positions of a row.
template <typename A>
struct Channel {
  bool spatial;  // the branch
  A scale, shift;
  A weight, bias;  // of the gate's logit
};

template <typename T, typename A, bool RESIDUAL>
INLINE void forward_row(
    const T* __restrict x, const T* __restrict identity, T* __restrict out, int64_t length, Channel<A> channel, A eps,
    A* mean, A* rstd) {
  double total = 0;
  for (int64_t begin = 0; begin < length; begin += BLOCK) {
    const int64_t end = std::min(begin + BLOCK, length);
    A part = 0;
#pragma omp simd reduction(+ : part)
    for (int64_t i = begin; i < end; ++i) part += A(x[i]);
    total += part;
  }
  const A m = A(total / length);
  *mean = m;
  if (!channel.spatial) {
    const A gate = sigmoid(channel.weight * (channel.scale * m + channel.shift) + channel.bias);
    const A factor = gate * channel.scale, summand = gate * channel.shift;
#pragma omp simd
    for (int64_t i = 0; i < length; ++i) {
      const A y = A(x[i]) * factor + summand;
      out[i] = T(RESIDUAL ? relu(y + A(identity[i])) : y);
    }
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
  const A slope = channel.weight * *rstd, centre = channel.scale * m + channel.shift;
#pragma omp simd
  for (int64_t i = 0; i < length; ++i) {
    const A d = channel.scale * (A(x[i]) - m);
    const A y = (d + centre) * sigmoid(slope * d + channel.bias);
    out[i] = T(RESIDUAL ? relu(y + A(identity[i])) : y);
  }
}

// The sums over a row that the gradients of the vectors need.
template <typename A>
struct Sums {
  A grad_y, grad_y_x, grad_logit, grad_logit_normalised;
};

template <typename T, typename A, bool RESIDUAL>
INLINE void backward_row(
    const T* __restrict grad_out, const T* __restrict x, const T* __restrict out, T* __restrict grad_x,
    T* __restrict grad_identity, int64_t length, Channel<A> channel, A mean, A rstd, A* __restrict scratch,
    Sums<A>* sums) {
  if (!channel.spatial) {
    double sum = 0, sum_x = 0;
    for (int64_t begin = 0; begin < length; begin += BLOCK) {
      const int64_t end = std::min(begin + BLOCK, length);
      A part = 0, part_x = 0;
#pragma omp simd reduction(+ : part, part_x)
      for (int64_t i = begin; i < end; ++i) {
        const A z = RESIDUAL && A(out[i]) <= A(0) ? A(0) : A(grad_out[i]);
        if (RESIDUAL) grad_identity[i] = T(z);
        part += z;
        part_x += z * A(x[i]);
      }
      sum += part;
      sum_x += part_x;
    }
    const A gate = sigmoid(channel.weight * (channel.scale * mean + channel.shift) + channel.bias);
    const A grad_gate = channel.scale * A(sum_x) + channel.shift * A(sum);
    sums->grad_logit = grad_gate * gate * (A(1) - gate);
    sums->grad_logit_normalised = 0;
    const A grad_mean = sums->grad_logit * channel.weight;
    sums->grad_y = gate * A(sum) + grad_mean;
    sums->grad_y_x = gate * A(sum_x) + grad_mean * mean;
    const A factor = channel.scale * gate, summand = channel.scale * grad_mean / A(length);
    const T* __restrict z = RESIDUAL ? grad_identity : grad_out;
#pragma omp simd
    for (int64_t i = 0; i < length; ++i) grad_x[i] = T(A(z[i]) * factor + summand);
    return;
  }
  A* __restrict gated = scratch;
  A* __restrict logit = scratch + length;
  const A centre = channel.scale * mean + channel.shift;
  double sum_logit = 0, sum_normalised = 0;
  for (int64_t begin = 0; begin < length; begin += BLOCK) {
    const int64_t end = std::min(begin + BLOCK, length);
    A part = 0, part_normalised = 0;
#pragma omp simd reduction(+ : part, part_normalised)
    for (int64_t i = begin; i < end; ++i) {
      const A z = RESIDUAL && A(out[i]) <= A(0) ? A(0) : A(grad_out[i]);
      if (RESIDUAL) grad_identity[i] = T(z);
      const A d = channel.scale * (A(x[i]) - mean);
      const A normalised = rstd * d;
      const A gate = sigmoid(channel.weight * normalised + channel.bias);
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
      part_x += grad_y * wide;
    }
    sum += part;
    sum_x += part_x;
  }
  sums->grad_y = A(sum);
  sums->grad_y_x = A(sum_x);
}

// The functions that are compiled for several processors must not be templates.
#define FORWARD_ROW(CLONED, NAME, T, A, RESIDUAL)                                                             \
  CLONED void NAME(                                                                                           \
      const T* x, const T* identity, T* out, int64_t length, Channel<A> channel, A eps, A* mean, A* rstd) {   \
    forward_row<T, A, RESIDUAL>(x, identity, out, length, channel, eps, mean, rstd);                          \
  }
#define BACKWARD_ROW(CLONED, NAME, T, A, RESIDUAL)                                                            \
  CLONED void NAME(                                                                                           \
      const T* grad_out, const T* x, const T* out, T* grad_x, T* grad_identity, int64_t length,               \
      Channel<A> channel, A mean, A rstd, A* scratch, Sums<A>* sums) {                                        \
    backward_row<T, A, RESIDUAL>(                                                                             \
        grad_out, x, out, grad_x, grad_identity, length, channel, mean, rstd, scratch, sums);                 \
  }
#define ROWS(CLONED, T, A, SUFFIX)                                          \
  FORWARD_ROW(CLONED, forward_alone_##SUFFIX, T, A, false)                  \
  FORWARD_ROW(CLONED, forward_residual_##SUFFIX, T, A, true)                \
  BACKWARD_ROW(CLONED, backward_alone_##SUFFIX, T, A, false)                \
  BACKWARD_ROW(CLONED, backward_residual_##SUFFIX, T, A, true)              \
  template <>                                                               \
  struct Rows<T> {                                                          \
    using Wide = A;                                                         \
    static auto forward(bool residual) {                                    \
      return residual ? forward_residual_##SUFFIX : forward_alone_##SUFFIX; \
    }                                                                       \
    static auto backward(bool residual) {                                   \
      return residual ? backward_residual_##SUFFIX : backward_alone_##SUFFIX; \
    }                                                                       \
  };

template <typename T>
struct Rows;
ROWS(CLONES, float, float, f32)
ROWS(, double, double, f64)
ROWS(CLONES, c10::BFloat16, float, bf16)
ROWS(, c10::Half, float, f16)

// The channels, their vectors and where they are in the shuffled maps.
template <typename A>
struct Layout {
  int64_t channels, k;
  const A *scale, *shift, *parameters;

  // Args: the dtype of the arithmetic for all tensors; scale and shift have C elements, parameters 6 x K.
  Layout(const Tensor& scale_, const Tensor& shift_, const Tensor& parameters_)
      : channels(scale_.numel()),
        k(parameters_.size(1)),
        scale(scale_.const_data_ptr<A>()),
        shift(shift_.const_data_ptr<A>()),
        parameters(parameters_.const_data_ptr<A>()) {}

  Channel<A> channel(int64_t c) const {
    const int64_t j = c % k;
    if (c / k % 2 == 0) return {false, scale[c], shift[c], parameters[j], parameters[k + j]};
    const A spatial_weight = parameters[2 * k + j], spatial_bias = parameters[3 * k + j];
    const A norm_weight = parameters[4 * k + j], norm_bias = parameters[5 * k + j];
    return {true, scale[c], shift[c], spatial_weight * norm_weight, spatial_weight * norm_bias + spatial_bias};
  }

  int64_t shuffled(int64_t c) const { return c < channels / 2 ? 2 * c : 2 * c - channels + 1; }

  // The place of a channel of the spatial branch among the C / 2 of an image.
  int64_t spatial(int64_t c) const { return c / (2 * k) * k + c % k; }
};

// Rows that one thread computes at least: it takes some microseconds to start one.
int64_t grain(int64_t length) { return std::max<int64_t>(1, (1 << 15) / std::max<int64_t>(1, length)); }

void check(const Tensor& like, const Tensor& map) {
  TORCH_CHECK(
      map.device().is_cpu() && map.scalar_type() == like.scalar_type() && map.sizes() == like.sizes() &&
          map.is_contiguous(),
      "expected contiguous maps of one dtype and shape on the CPU");
}

std::tuple<Tensor, Tensor, Tensor> forward(
    const Tensor& x, const MaybeTensor& identity, const Tensor& scale, const Tensor& shift, const Tensor& parameters,
    double eps) {
  const int64_t n = x.size(0), channels = x.size(1), length = x.size(2) * x.size(3);
  check(x, x);
  if (identity) check(x, *identity);
  Tensor out = at::empty_like(x), mean = at::empty({n, channels}, scale.options());
  Tensor rstd = at::empty({n, channels / 2}, scale.options());
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kBFloat16, at::kHalf, x.scalar_type(), "shuffle_attention", [&] {
    using A = Rows<scalar_t>::Wide;
    const Layout<A> layout(scale, shift, parameters);
    const auto row = Rows<scalar_t>::forward(identity.has_value());
    const scalar_t* from = x.const_data_ptr<scalar_t>();
    const scalar_t* add = identity ? identity->const_data_ptr<scalar_t>() : nullptr;
    scalar_t* to = out.mutable_data_ptr<scalar_t>();
    A *means = mean.mutable_data_ptr<A>(), *rstds = rstd.mutable_data_ptr<A>();
    at::parallel_for(0, n * channels, grain(length), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t image = i / channels, c = i % channels;
        const int64_t target = (image * channels + layout.shuffled(c)) * length;
        A unused;
        A* own_rstd = c / layout.k % 2 ? rstds + image * (channels / 2) + layout.spatial(c) : &unused;
        row(from + i * length, add ? add + target : nullptr, to + target, length, layout.channel(c), A(eps),
            means + i, own_rstd);
      }
    });
  });
  return {out, mean, rstd};
}

// Returns the gradients of x and identity, and for each image and channel the four sums (4 x N x C).
std::tuple<Tensor, Tensor, Tensor> backward(
    const Tensor& grad_out, const Tensor& x, const MaybeTensor& out, const Tensor& mean, const Tensor& rstd,
    const Tensor& scale, const Tensor& shift, const Tensor& parameters) {
  const int64_t n = x.size(0), channels = x.size(1), length = x.size(2) * x.size(3);
  check(x, x);
  check(x, grad_out);
  if (out) check(x, *out);
  Tensor grad_x = at::empty_like(x), grad_identity = out ? at::empty_like(x) : at::empty({0}, x.options());
  Tensor sums = at::empty({4, n, channels}, scale.options());
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kBFloat16, at::kHalf, x.scalar_type(), "shuffle_attention_backward", [&] {
    using A = Rows<scalar_t>::Wide;
    const Layout<A> layout(scale, shift, parameters);
    const auto row = Rows<scalar_t>::backward(out.has_value());
    const scalar_t *grad = grad_out.const_data_ptr<scalar_t>(), *from = x.const_data_ptr<scalar_t>();
    const scalar_t* result = out ? out->const_data_ptr<scalar_t>() : nullptr;
    scalar_t* to = grad_x.mutable_data_ptr<scalar_t>();
    scalar_t* to_identity = out ? grad_identity.mutable_data_ptr<scalar_t>() : nullptr;
    const A *means = mean.const_data_ptr<A>(), *rstds = rstd.const_data_ptr<A>();
    A* totals = sums.mutable_data_ptr<A>();
    at::parallel_for(0, n * channels, grain(length), [&](int64_t begin, int64_t end) {
      std::vector<A> scratch(2 * length);
      for (int64_t i = begin; i < end; ++i) {
        const int64_t image = i / channels, c = i % channels;
        const int64_t target = (image * channels + layout.shuffled(c)) * length;
        const A own_rstd = c / layout.k % 2 ? rstds[image * (channels / 2) + layout.spatial(c)] : A(0);
        Sums<A> own;
        row(grad + target, from + i * length, result ? result + target : nullptr, to + i * length,
            to_identity ? to_identity + target : nullptr, length, layout.channel(c), means[i], own_rstd,
            scratch.data(), &own);
        totals[i] = own.grad_y;
        totals[n * channels + i] = own.grad_y_x;
        totals[2 * n * channels + i] = own.grad_logit;
        totals[3 * n * channels + i] = own.grad_logit_normalised;
      }
    });
  });
  return {grad_x, grad_identity, sums};
}

}  // namespace

TORCH_LIBRARY(sa_mmdet_cpu, library) {
  library.def("forward(Tensor x, Tensor? identity, Tensor scale, Tensor shift, Tensor parameters, float eps) "
              "-> (Tensor, Tensor, Tensor)");
  library.def("backward(Tensor grad_out, Tensor x, Tensor? out, Tensor mean, Tensor rstd, Tensor scale, Tensor shift, "
              "Tensor parameters) -> (Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(sa_mmdet_cpu, CPU, library) {
  library.impl("forward", forward);
  library.impl("backward", backward);
}
