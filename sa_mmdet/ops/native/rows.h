// What the kernels for CPUs share: one binary for all processors, the functions of a gate, batch norms as numbers per
// channel, and the rows of a map that are kept for the gradients.
//
// A row is one channel of one image, L positions. T is the dtype of the maps, A that of the arithmetic.

#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include <torch/version.h>

namespace sa_mmdet {

using at::Tensor;
#if TORCH_VERSION_MAJOR == 2 && TORCH_VERSION_MINOR < 5  // before c10's own became the standard library's
using MaybeTensor = c10::optional<Tensor>;
#else
using MaybeTensor = std::optional<Tensor>;
#endif

#define INLINE inline __attribute__((always_inline))

// One binary for all processors: the loader chooses the widest instructions that the processor has. Before GCC 12 there
// is no name for AVX2 with fused multiply-add, which saves a quarter of a sigmoid's time.
#if defined(__x86_64__) && defined(__linux__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__) && \
    !defined(SA_MMDET_DEFAULT_CLONE)
#if __GNUC__ >= 12
#define CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#endif
#else
#define CLONES
#endif

// Sums of this many elements are added in the dtype of the arithmetic, the sums of all blocks in double.
constexpr int64_t BLOCK = 2048;

// 2^t. glibc's function is not vectorised without -ffast-math.
INLINE float power_of_two(float t) {
  t = t > 127.0f ? 127.0f : t;  // NaN passes both comparisons
  t = t < -126.0f ? -126.0f : t;
  constexpr float magic = 12582912.0f + 127.0f;  // 1.5 * 2^23, so that the integer is in the lowest bits; the exponent's bias
  const float rounded = t + magic;
  const float r = t - (rounded - magic);
  float p = 1.5353362e-4f;  // the polynomial of least error on [-1/2, 1/2], from Cephes' exp2f
  p = p * r + 1.3398874e-3f;
  p = p * r + 9.6184373e-3f;
  p = p * r + 5.5503324e-2f;
  p = p * r + 2.4022651e-1f;
  p = p * r + 6.9314718e-1f;
  p = p * r + 1.0f;
  uint32_t bits;
  std::memcpy(&bits, &rounded, sizeof(bits));
  bits <<= 23;
  float power;
  std::memcpy(&power, &bits, sizeof(power));
  return p * power;
}

INLINE double power_of_two(double t) { return std::exp2(t); }

// y * sigmoid(z), from t = NEGATIVE_LOG2_E * z. A caller whose z is slope * d + bias puts the constant into both, which
// saves a product for each element.
template <typename A>
INLINE A times_sigmoid(A y, A t) {
  return y / (A(1) + power_of_two(t));
}

constexpr double NEGATIVE_LOG2_E = -1.4426950408889634;

template <typename A>
INLINE A sigmoid(A z) {
  return times_sigmoid(A(1), A(NEGATIVE_LOG2_E) * z);
}

template <typename A>
INLINE A relu(A z) {
  return A(0) > z ? A(0) : z;  // one instruction; NaN stays NaN
}

// The gradient before the ReLU: that of the output where the output is positive, or not a number.
template <typename A>
INLINE A before_relu(A grad_out, A out) {
  return out <= A(0) ? A(0) : grad_out;
}

template <typename T, typename A>
INLINE A mean_of_row(const T* __restrict x, int64_t length) {
  double total = 0;
  for (int64_t begin = 0; begin < length; begin += BLOCK) {
    const int64_t end = std::min(begin + BLOCK, length);
    A part = 0;
#pragma omp simd reduction(+ : part)
    for (int64_t i = begin; i < end; ++i) part += A(x[i]);
    total += part;
  }
  return A(total / length);
}

// The dtype of the arithmetic for maps of dtype T.
template <typename T>
struct Wide {
  using type = float;
};
template <>
struct Wide<double> {
  using type = double;
};

inline at::ScalarType wide_type(const Tensor& x) { return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat; }

// The options of tensors in the dtype of the arithmetic.
inline c10::TensorOptions numbers(const Tensor& x) { return x.options().dtype(wide_type(x)); }

// The number of positions of a map.
inline int64_t positions(const Tensor& x) { return x.size(2) * x.size(3); }

// Rows that one thread computes at least: it takes some microseconds to start one.
inline int64_t grain(int64_t length) { return std::max<int64_t>(1, (1 << 15) / std::max<int64_t>(1, length)); }

// A batch norm in evaluation mode: y = scale * x + shift, with scale = weight * rstd and shift = bias - mean * scale.
// The statistics may be missing (0 and 1), and so may weight (1) and bias (0).
struct Norm {
  MaybeTensor weight, bias, mean, variance;
  double eps = 0;
};

// A vector of C elements in the dtype of the arithmetic; `value` for each element if it is missing.
template <typename A>
std::vector<A> elements(const MaybeTensor& vector, int64_t channels, A value) {
  if (!vector) return std::vector<A>(channels, value);
  TORCH_CHECK(vector->numel() == channels, "a vector has ", vector->numel(), " elements for ", channels, " channels");
  const Tensor wide = vector->detach().to(c10::CppTypeToScalarType<A>::value).contiguous();
  const A* begin = wide.template const_data_ptr<A>();
  return std::vector<A>(begin, begin + channels);
}

template <typename A>
struct NormNumbers {
  std::vector<A> weight, bias, mean, rstd, scale, shift;

  NormNumbers(const Norm& norm, int64_t channels)
      : weight(elements<A>(norm.weight, channels, 1)),
        bias(elements<A>(norm.bias, channels, 0)),
        mean(elements<A>(norm.mean, channels, 0)),
        rstd(elements<A>(norm.variance, channels, 1)),
        scale(channels),
        shift(channels) {
    for (int64_t c = 0; c < channels; ++c) {
      if (norm.variance) rstd[c] = A(1) / std::sqrt(rstd[c] + A(norm.eps));
      scale[c] = weight[c] * rstd[c];
      shift[c] = bias[c] - mean[c] * scale[c];
    }
  }
};

// Whether (y - bias) / weight gives the normalised x to all but the last few bits. The rounding of y, and of the terms
// that were added to it (their root mean square), grows by this division.
template <typename A>
inline bool recoverable(A factor, A weight, A bias, A added, bool half) {
  // 64: six bits. In half precision, where the terms themselves have 8 or 11 bits, none may be lost.
  const A limit = half ? A(1) : A(64), least = A(1e-20);
  const A size = std::abs(factor * weight);
  return std::abs(weight) > least && size > least && std::abs(bias) <= limit * std::abs(weight) &&
      added <= limit * size;
}

// The rows of x that are kept: all, as x itself, or some, each at the place that `places` (N x C) names, -1 for none.
struct Kept {
  Tensor rows;
  MaybeTensor places;

  template <typename T>
  const T* row(int64_t i, int64_t length) const {
    const int64_t place = places ? places->const_data_ptr<int64_t>()[i] : i;
    return place < 0 ? nullptr : rows.const_data_ptr<T>() + place * length;
  }
};

// Copies the rows of x whose flags are set.
Kept keep_rows(const Tensor& x, const std::vector<char>& flags);

// Raises an error unless the map is contiguous, on the CPU, and of the shape and dtype of the other.
void check(const Tensor& like, const Tensor& map);

}  // namespace sa_mmdet
