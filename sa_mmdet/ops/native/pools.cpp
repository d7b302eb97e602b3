// Pooling of batch norms' results over positions and over channels: see pools.h.

#include "pools.h"

#include <ATen/Dispatch.h>
#include <ATen/ops/empty_like.h>

#include <limits>

namespace sa_mmdet {
namespace {

// Positions whose pools over all channels stay in the cache.
constexpr int64_t TILE = 1024;
// Positions that are searched at once.
constexpr int64_t SEARCHED = 256;

// Whether a number is larger, or the first that is not a number; without branches, which would not be vectorised.
template <typename A>
INLINE bool takes(A value, A largest) {
  return (value > largest) | ((value != value) & (largest == largest));
}

// The first element that is equal to `largest`, of a row that has one.
template <typename T, typename A>
INLINE int64_t place_of(const T* __restrict x, int64_t length, A sign, A largest) {
  int64_t begin = 0;
  for (; begin + SEARCHED < length; begin += SEARCHED) {
    int32_t count = 0;
#pragma omp simd reduction(+ : count)
    for (int64_t i = begin; i < begin + SEARCHED; ++i) count += sign * A(x[i]) == largest;
    if (count) break;
  }
  while (begin + 1 < length && sign * A(x[begin]) != largest) ++begin;
  return begin;
}

// `sign` is 1 for the largest element, -1 for the least.
template <typename T, typename A>
INLINE void row_pools_row(const T* __restrict x, int64_t length, A sign, A* mean, A* extreme, int64_t* place) {
  A largest = sign * A(x[0]);
#pragma omp simd reduction(max : largest)
  for (int64_t i = 0; i < length; ++i) {
    const A value = sign * A(x[i]);
    largest = value > largest ? value : largest;
  }
  *mean = mean_of_row<T, A>(x, length);
  int64_t found = 0;
  if (*mean == *mean) {
    found = place_of<T, A>(x, length, sign, largest);
  } else {  // one may be no number
    for (int64_t i = 1; i < length; ++i) {
      if (takes(sign * A(x[i]), sign * A(x[found]))) found = i;
    }
  }
  *extreme = A(x[found]);
  *place = found;
}

template <typename T, typename A>
INLINE void channel_pools_tile(
    const T* __restrict x, int64_t length, A scale, A shift, int32_t channel, A* __restrict largest, A* __restrict sum,
    int32_t* __restrict found) {
#pragma omp simd
  for (int64_t i = 0; i < length; ++i) {
    const A y = A(x[i]) * scale + shift;
    const bool taken = takes(y, largest[i]);
    largest[i] = taken ? y : largest[i];
    found[i] = taken ? channel : found[i];
    sum[i] += y;
  }
}

template <typename T, typename A>
INLINE void channel_pools_backward_row(
    const A* __restrict grad_largest, const A* __restrict grad_mean, const T* __restrict grad_x, const T* __restrict x,
    const int32_t* __restrict found, T* __restrict out, int64_t length, int32_t channel, A share, A scale, A norm_mean,
    A* sum, A* sum_x) {
  double total = 0, total_x = 0;
  for (int64_t begin = 0; begin < length; begin += BLOCK) {
    const int64_t end = std::min(begin + BLOCK, length);
    A part = 0, part_x = 0;
#pragma omp simd reduction(+ : part, part_x)
    for (int64_t i = begin; i < end; ++i) {
      const A z = grad_mean[i] * share + (found[i] == channel ? grad_largest[i] : A(0));
      out[i] = T(A(grad_x[i]) + z * scale);
      part += z;
      part_x += z * (A(x[i]) - norm_mean);
    }
    total += part;
    total_x += part_x;
  }
  *sum = A(total);
  *sum_x = A(total_x);
}

// The functions that are compiled for several processors must not be templates.
#define POOL_ROWS(CLONED, T, A, SUFFIX)                                                                                   \
  CLONED void row_pools_##SUFFIX(const T* x, int64_t length, A sign, A* mean, A* extreme, int64_t* place) {          \
    row_pools_row<T, A>(x, length, sign, mean, extreme, place);                                                      \
  }                                                                                                                  \
  CLONED void channel_pools_##SUFFIX(                                                                                \
      const T* x, int64_t length, A scale, A shift, int32_t channel, A* largest, A* sum, int32_t* found) {           \
    channel_pools_tile<T, A>(x, length, scale, shift, channel, largest, sum, found);                                 \
  }                                                                                                                  \
  CLONED void channel_pools_backward_##SUFFIX(                                                                       \
      const A* grad_largest, const A* grad_mean, const T* grad_x, const T* x, const int32_t* found, T* out,          \
      int64_t length, int32_t channel, A share, A scale, A norm_mean, A* sum, A* sum_x) {                            \
    channel_pools_backward_row<T, A>(                                                                                \
        grad_largest, grad_mean, grad_x, x, found, out, length, channel, share, scale, norm_mean, sum, sum_x);       \
  }                                                                                                                  \
  template <>                                                                                                        \
  struct PoolRows<T> {                                                                                                   \
    static constexpr auto row_pools = row_pools_##SUFFIX;                                                            \
    static constexpr auto channel_pools = channel_pools_##SUFFIX;                                                    \
    static constexpr auto channel_pools_backward = channel_pools_backward_##SUFFIX;                                  \
  };

template <typename T>
struct PoolRows;
POOL_ROWS(CLONES, float, float, f32)
POOL_ROWS(, double, double, f64)
POOL_ROWS(CLONES, c10::BFloat16, float, bf16)
POOL_ROWS(, c10::Half, float, f16)

Tensor gate_numbers(const Tensor& gate, const Tensor& x) {
  TORCH_CHECK(gate.numel() == x.size(0) * x.size(1), "expected a gate for each image and channel");
  return gate.detach().to(wide_type(x)).contiguous();
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> row_pools_forward(const Tensor& x, const Norm& norm) {
  check(x, x);
  const int64_t n = x.size(0), channels = x.size(1), length = positions(x);
  TORCH_CHECK(length > 0, "expected a map with positions");
  Tensor means = at::empty({n, channels}, numbers(x)), extremes = at::empty({n, channels}, numbers(x));
  Tensor places = at::empty({n, channels}, x.options().dtype(at::kLong));
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kBFloat16, at::kHalf, x.scalar_type(), "row_pools", [&] {
    using A = Wide<scalar_t>::type;
    const NormNumbers<A> own(norm, channels);
    const scalar_t* from = x.const_data_ptr<scalar_t>();
    A *mean = means.mutable_data_ptr<A>(), *extreme = extremes.mutable_data_ptr<A>();
    int64_t* place = places.mutable_data_ptr<int64_t>();
    at::parallel_for(0, n * channels, grain(length), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const A sign = own.scale[i % channels] < A(0) ? A(-1) : A(1);
        PoolRows<scalar_t>::row_pools(from + i * length, length, sign, mean + i, extreme + i, place + i);
      }
    });
  });
  return {means, extremes, places};
}

std::tuple<Tensor, Tensor> channel_pools_forward(const Tensor& x, const Norm& norm, const Tensor& gate) {
  check(x, x);
  const int64_t n = x.size(0), channels = x.size(1), length = positions(x);
  Tensor pools = at::empty({n, 2, x.size(2), x.size(3)}, numbers(x));
  Tensor found = at::empty({n, 1, x.size(2), x.size(3)}, x.options().dtype(at::kInt));
  const Tensor gates = gate_numbers(gate, x);
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kBFloat16, at::kHalf, x.scalar_type(), "channel_pools", [&] {
    using A = Wide<scalar_t>::type;
    const NormNumbers<A> own(norm, channels);
    const scalar_t* from = x.const_data_ptr<scalar_t>();
    const A* factor = gates.const_data_ptr<A>();
    A* to = pools.mutable_data_ptr<A>();
    int32_t* channel = found.mutable_data_ptr<int32_t>();
    // Tiles of one size, so that no thread waits for another: what a position gets does not depend on its tile.
    const int64_t threads = at::get_num_threads() / std::max<int64_t>(1, n);
    const int64_t wanted = std::max<int64_t>({(length + TILE - 1) / TILE, std::min(length / 64, threads), 1});
    const int64_t tile_size = std::max<int64_t>(1, (length + wanted - 1) / wanted);
    const int64_t tiles = (length + tile_size - 1) / tile_size;
    at::parallel_for(0, n * tiles, 1, [&](int64_t begin, int64_t end) {
      for (int64_t tile = begin; tile < end; ++tile) {
        const int64_t image = tile / tiles, start = tile % tiles * tile_size;
        const int64_t size = std::min(tile_size, length - start);
        A *largest = to + image * 2 * length + start, *mean = largest + length;
        int32_t* of_largest = channel + image * length + start;
        std::fill_n(largest, size, -std::numeric_limits<A>::infinity());
        std::fill_n(mean, size, A(0));
        std::fill_n(of_largest, size, 0);
        for (int64_t c = 0; c < channels; ++c) {
          const int64_t i = image * channels + c;
          PoolRows<scalar_t>::channel_pools(
              from + i * length + start, size, factor[i] * own.scale[c], factor[i] * own.shift[c],
              static_cast<int32_t>(c), largest, mean, of_largest);
        }
        for (int64_t i = 0; i < size; ++i) mean[i] /= A(channels);
      }
    });
  });
  return {pools, found};
}

std::tuple<Tensor, Tensor> channel_pools_backward(
    const Tensor& grad_pools, const Tensor& grad_x, const Tensor& x, const Tensor& channels_of_largest,
    const Norm& norm, const Tensor& gate) {
  check(x, x);
  check(x, grad_x);
  const int64_t n = x.size(0), channels = x.size(1), length = positions(x);
  Tensor out = at::empty_like(x), sums = at::empty({2, n, channels}, numbers(x));
  const Tensor gates = gate_numbers(gate, x), grads = grad_pools.to(wide_type(x)).contiguous();
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kBFloat16, at::kHalf, x.scalar_type(), "channel_pools_backward", [&] {
    using A = Wide<scalar_t>::type;
    const NormNumbers<A> own(norm, channels);
    const scalar_t *from = x.const_data_ptr<scalar_t>(), *add = grad_x.const_data_ptr<scalar_t>();
    const A *factor = gates.const_data_ptr<A>(), *grad = grads.const_data_ptr<A>();
    const int32_t* found = channels_of_largest.const_data_ptr<int32_t>();
    scalar_t* to = out.mutable_data_ptr<scalar_t>();
    A* totals = sums.mutable_data_ptr<A>();
    at::parallel_for(0, n * channels, grain(length), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t image = i / channels, c = i % channels, at = i * length;
        const A* of_image = grad + image * 2 * length;
        A* sum_x = totals + n * channels + i;
        PoolRows<scalar_t>::channel_pools_backward(
            of_image, of_image + length, add + at, from + at, found + image * length, to + at, length,
            static_cast<int32_t>(c), A(1) / A(channels), factor[i] * own.scale[c], own.mean[c], totals + i, sum_x);
        *sum_x *= own.rstd[c];
      }
    });
  });
  return {out, sums};
}

}  // namespace sa_mmdet
