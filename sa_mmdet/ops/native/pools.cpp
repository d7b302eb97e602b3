// Pooling over positions and over channels: see pools.h.

#include "pools.h"

#include <ATen/Dispatch.h>
#include <ATen/ops/empty_like.h>

#include <limits>

namespace sa_mmdet {
namespace {

// Positions whose pools over all channels stay in the cache.
constexpr int64_t TILE = 1024;
// Channels that are read at once, so that the pools are read and written once for all of them.
constexpr int64_t TOGETHER = 4;
// Positions that are searched at once.
constexpr int64_t SEARCHED = 64;

// Whether a value is larger, or the first NaN; without branches, which would not be vectorised.
template <typename A>
INLINE bool takes(A value, A largest) {
  return (value > largest) | ((value != value) & (largest == largest));
}

// The first element from `begin` on that is equal to `largest`, of a row that has one there.
template <typename T, typename A>
INLINE int64_t place_of(const T* __restrict x, int64_t begin, int64_t length, A sign, A largest) {
  for (; begin + SEARCHED < length; begin += SEARCHED) {
    int32_t count = 0;
#pragma omp simd reduction(+ : count)
    for (int64_t i = begin; i < begin + SEARCHED; ++i) count += sign * A(x[i]) == largest;
    if (count) break;
  }
  while (begin + 1 < length && sign * A(x[begin]) != largest) ++begin;
  return begin;
}

// `sign` is 1 for the largest element, -1 for the least. The block that has it is searched for its place.
template <typename T, typename A>
INLINE void row_pools_row(const T* __restrict x, int64_t length, A sign, A* mean, A* extreme, int64_t* place) {
  double total = 0;
  A largest = sign * A(x[0]);
  int64_t found = 0;
  for (int64_t begin = 0; begin < length; begin += BLOCK) {
    const int64_t end = std::min(begin + BLOCK, length);
    A part = 0, most = sign * A(x[begin]);
#pragma omp simd reduction(+ : part) reduction(max : most)
    for (int64_t i = begin; i < end; ++i) {
      const A wide = A(x[i]), value = sign * wide;
      part += wide;
      most = value > most ? value : most;
    }
    total += part;
    if (most > largest) {
      largest = most;
      found = begin;
    }
  }
  *mean = A(total / length);
  if (*mean == *mean) {
    found = place_of<T, A>(x, found, length, sign, largest);
  } else {  // there may be a NaN
    found = 0;
    for (int64_t i = 1; i < length; ++i) {
      if (takes(sign * A(x[i]), sign * A(x[found]))) found = i;
    }
  }
  *extreme = A(x[found]);
  *place = found;
}

// What the pools of a tile of positions need of COUNT adjacent channels, of which x is the first. SAFE: where elements may
// be NaN.
template <typename T, typename A, int COUNT, bool SAFE>
INLINE void channel_pools_tile(
    const T* __restrict x, int64_t stride, int64_t length, const A* scales, const A* shifts, int32_t channel,
    A* __restrict largest, A* __restrict sum, int32_t* __restrict found) {
#pragma omp simd
  for (int64_t i = 0; i < length; ++i) {
    A most = largest[i], total = sum[i];
    int32_t place = found[i];
#pragma GCC unroll 4
    for (int j = 0; j < COUNT; ++j) {
      const A y = A(x[j * stride + i]) * scales[j] + shifts[j];
      const bool taken = SAFE ? takes(y, most) : y > most;
      most = taken ? y : most;
      place = taken ? channel + j : place;
      total += y;
    }
    largest[i] = most;
    found[i] = place;
    sum[i] = total;
  }
}

// The pools of a tile over all channels, and the channels of the largest. The means are sums here.
template <typename T, typename A, bool SAFE>
INLINE void channel_pools_all(
    const T* x, int64_t stride, int64_t length, const A* scales, const A* shifts, int64_t channels, A* largest, A* sum,
    int32_t* found) {
  std::fill_n(largest, length, -std::numeric_limits<A>::infinity());
  std::fill_n(sum, length, A(0));
  std::fill_n(found, length, 0);
  int64_t c = 0;
  for (; c + TOGETHER <= channels; c += TOGETHER) {
    channel_pools_tile<T, A, TOGETHER, SAFE>(
        x + c * stride, stride, length, scales + c, shifts + c, static_cast<int32_t>(c), largest, sum, found);
  }
  for (; c < channels; ++c) {
    channel_pools_tile<T, A, 1, SAFE>(
        x + c * stride, stride, length, scales + c, shifts + c, static_cast<int32_t>(c), largest, sum, found);
  }
}

template <typename T, typename A>
INLINE void channel_pools(
    const T* x, int64_t stride, int64_t length, const A* scales, const A* shifts, int64_t channels, A* largest, A* mean,
    int32_t* found) {
  channel_pools_all<T, A, false>(x, stride, length, scales, shifts, channels, largest, mean, found);
  A check = 0;
#pragma omp simd reduction(+ : check)
  for (int64_t i = 0; i < length; ++i) check += mean[i] - mean[i];
  if (check != A(0)) channel_pools_all<T, A, true>(x, stride, length, scales, shifts, channels, largest, mean, found);
  for (int64_t i = 0; i < length; ++i) mean[i] /= A(channels);
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

// SAFE: where elements may be NaN.
template <typename A, bool SAFE>
INLINE A larger(A one, A other) {
  return (SAFE ? takes(other, one) : other > one) ? other : one;
}

// One row of the result from the rows above and below, which may be missing, and the one between. The buffer has
// width + 2 elements, of which the first and the last are less than any other. Returns 0 if all elements are finite,
// otherwise not a number.
template <typename T, typename A, bool SAFE>
INLINE A max_pool_part(
    const T* __restrict above, const T* __restrict row, const T* __restrict below, int64_t width, A* __restrict buffer,
    T* __restrict out) {
  A* columns = buffer + 1;  // the same memory: no __restrict
  A difference = 0;
#pragma omp simd reduction(+ : difference)
  for (int64_t i = 0; i < width; ++i) {
    columns[i] = A(row[i]);
    difference += columns[i] - columns[i];
  }
  for (const T* __restrict other : {above, below}) {
    if (other == nullptr) continue;
#pragma omp simd reduction(+ : difference)
    for (int64_t i = 0; i < width; ++i) {
      const A value = A(other[i]);
      difference += value - value;
      columns[i] = larger<A, SAFE>(columns[i], value);
    }
  }
#pragma omp simd
  for (int64_t i = 0; i < (width + 1) / 2; ++i) {
    out[i] = T(larger<A, SAFE>(larger<A, SAFE>(buffer[2 * i], buffer[2 * i + 1]), buffer[2 * i + 2]));
  }
  return difference;
}

template <typename T, typename A>
INLINE void max_pool_row(const T* above, const T* row, const T* below, int64_t width, A* buffer, T* out) {
  const A difference = max_pool_part<T, A, false>(above, row, below, width, buffer, out);
  if (difference != A(0)) max_pool_part<T, A, true>(above, row, below, width, buffer, out);
}

// The functions that are compiled for several processors must not be templates.
#define POOL_ROWS(CLONED, T, A, SUFFIX)                                                                                   \
  CLONED void row_pools_##SUFFIX(const T* x, int64_t length, A sign, A* mean, A* extreme, int64_t* place) {          \
    row_pools_row<T, A>(x, length, sign, mean, extreme, place);                                                      \
  }                                                                                                                  \
  CLONED void channel_pools_##SUFFIX(                                                                                \
      const T* x, int64_t stride, int64_t length, const A* scales, const A* shifts, int64_t channels, A* largest,    \
      A* mean, int32_t* found) {                                                                                     \
    channel_pools<T, A>(x, stride, length, scales, shifts, channels, largest, mean, found);                          \
  }                                                                                                                  \
  CLONED void channel_pools_backward_##SUFFIX(                                                                       \
      const A* grad_largest, const A* grad_mean, const T* grad_x, const T* x, const int32_t* found, T* out,          \
      int64_t length, int32_t channel, A share, A scale, A norm_mean, A* sum, A* sum_x) {                            \
    channel_pools_backward_row<T, A>(                                                                                \
        grad_largest, grad_mean, grad_x, x, found, out, length, channel, share, scale, norm_mean, sum, sum_x);       \
  }                                                                                                                  \
  CLONED void max_pool_##SUFFIX(                                                                                     \
      const T* above, const T* row, const T* below, int64_t width, A* buffer, T* out) {                              \
    max_pool_row<T, A>(above, row, below, width, buffer, out);                                                       \
  }                                                                                                                  \
  template <>                                                                                                        \
  struct PoolRows<T> {                                                                                                   \
    static constexpr auto row_pools = row_pools_##SUFFIX;                                                            \
    static constexpr auto channel_pools = channel_pools_##SUFFIX;                                                    \
    static constexpr auto channel_pools_backward = channel_pools_backward_##SUFFIX;                                  \
    static constexpr auto max_pool = max_pool_##SUFFIX;                                                              \
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
    std::vector<A> scales(n * channels), shifts(n * channels);
    for (int64_t i = 0; i < n * channels; ++i) {
      scales[i] = factor[i] * own.scale[i % channels];
      shifts[i] = factor[i] * own.shift[i % channels];
    }
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
        PoolRows<scalar_t>::channel_pools(
            from + image * channels * length + start, length, size, scales.data() + image * channels,
            shifts.data() + image * channels, channels, largest, mean, channel + image * length + start);
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

Tensor max_pool(const Tensor& x) {
  check(x, x);
  const int64_t height = x.size(2), width = x.size(3), rows = (height + 1) / 2, columns = (width + 1) / 2;
  Tensor out = at::empty({x.size(0), x.size(1), rows, columns}, x.options());
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kBFloat16, at::kHalf, x.scalar_type(), "max_pool", [&] {
    using A = Wide<scalar_t>::type;
    const scalar_t* from = x.const_data_ptr<scalar_t>();
    scalar_t* to = out.mutable_data_ptr<scalar_t>();
    at::parallel_for(0, x.size(0) * x.size(1) * rows, grain(3 * width), [&](int64_t begin, int64_t end) {
      std::vector<A> buffer(width + 2, -std::numeric_limits<A>::infinity());
      for (int64_t i = begin; i < end; ++i) {
        const int64_t place = 2 * (i % rows);
        const scalar_t* row = from + (i / rows * height + place) * width;
        PoolRows<scalar_t>::max_pool(
            place > 0 ? row - width : nullptr, row, place + 1 < height ? row + width : nullptr, width, buffer.data(),
            to + i * columns);
      }
    });
  });
  return out;
}

}  // namespace sa_mmdet
