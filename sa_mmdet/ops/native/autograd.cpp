// The operators of the library and their derivatives.
//
// The gradients of the first order come from the kernels. They need what forward kept: an output, and the rows of x that
// it does not give again. Everything else, such as derivatives of higher order, goes through PyTorch's own operators: x
// is computed again where it is needed, and takes the place of x in autograd's graph.

// There are no loops over maps here: more than this costs ten seconds of compiling and gains nothing.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("O1")
#endif

#include <ATen/Dispatch.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/threshold_backward.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/library.h>

#include "pointwise.h"
#include "pools.h"
#include "shuffle_attention.h"

namespace sa_mmdet {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Tensors that the kernels can read: neither traced nor batched, and without a derivative in forward mode.
bool plain(const Tensor& tensor) {
  constexpr c10::DispatchKeySet others(
      {c10::DispatchKey::Python, c10::DispatchKey::Functionalize, c10::DispatchKey::FuncTorchBatched,
       c10::DispatchKey::FuncTorchGradWrapper, c10::DispatchKey::Batched, c10::DispatchKey::ZeroTensor,
       c10::DispatchKey::Conjugate, c10::DispatchKey::Negative});
  return tensor.device().is_cpu() && tensor.layout() == at::kStrided && !tensor.key_set().has_any(others) &&
      !torch::autograd::isFwGradDefined(tensor);
}

Tensor per_channel(const Tensor& vector) { return vector.view({1, -1, 1, 1}); }

// Where x stands in autograd's graph, without its values.
struct Place : torch::CustomClassHolder {
  explicit Place(torch::autograd::Edge edge_) : edge(std::move(edge_)) {}
  torch::autograd::Edge edge;
};

void remember(AutogradContext* ctx, const char* name, const Tensor& x) {
  if (!x.requires_grad()) return;
  ctx->saved_data[name] =
      c10::IValue::make_capsule(c10::make_intrusive<Place>(torch::autograd::impl::gradient_edge(x)));
}

// The values of x, computed again, at x's place in autograd's graph.
Tensor at_place(AutogradContext* ctx, const char* name, const Tensor& values) {
  const auto found = ctx->saved_data.find(name);
  if (found == ctx->saved_data.end()) return values;
  const auto capsule = found->second.toCapsule();
  Tensor x = values.detach();
  torch::autograd::impl::set_gradient_edge(x, static_cast<Place*>(capsule.get())->edge);
  return x;
}

// The vectors of a norm among saved tensors.
Norm norm_of(const variable_list& saved, size_t begin, double eps) {
  const auto maybe = [&](size_t i) { return saved[i].defined() ? MaybeTensor(saved[i]) : MaybeTensor(); };
  return {maybe(begin), maybe(begin + 1), maybe(begin + 2), maybe(begin + 3), eps};
}

void append(variable_list& list, const Norm& norm) {
  for (const MaybeTensor* vector : {&norm.weight, &norm.bias, &norm.mean, &norm.variance}) {
    list.push_back(vector->value_or(Tensor()));
  }
}

Tensor defined(const MaybeTensor& tensor) { return tensor.value_or(Tensor()); }

MaybeTensor maybe(const Tensor& tensor) { return tensor.defined() ? MaybeTensor(tensor) : MaybeTensor(); }

Tensor like(const Tensor& gradient, const Tensor& vector) {
  return vector.defined() ? gradient.to(vector.scalar_type()).view(vector.sizes()) : Tensor();
}

// norm(x) by PyTorch's operators, in the dtype of the arithmetic.
Tensor normed(const Tensor& x, const Norm& norm, at::ScalarType dtype) {
  Tensor y = x.to(dtype);
  if (norm.mean) y = y - per_channel(norm.mean->to(dtype));
  if (norm.variance) y = y * per_channel((norm.variance->to(dtype) + norm.eps).rsqrt());
  if (norm.weight) y = y * per_channel(norm.weight->to(dtype));
  return norm.bias ? y + per_channel(norm.bias->to(dtype)) : y;
}

// x from y = norm(x), with the rows that are kept. Where the norm has no weight, it must have kept all rows.
Tensor recovered(const Tensor& y, const Kept& kept, const Norm& norm, const Tensor& like) {
  Tensor x;
  AT_DISPATCH_FLOATING_TYPES(y.scalar_type(), "recovered", [&] {
    const int64_t channels = like.size(1);
    const NormNumbers<scalar_t> own(norm, channels);
    Tensor scale = at::empty({channels}, y.options()), shift = at::empty({channels}, y.options());
    std::copy(own.scale.begin(), own.scale.end(), scale.mutable_data_ptr<scalar_t>());
    std::copy(own.shift.begin(), own.shift.end(), shift.mutable_data_ptr<scalar_t>());
    x = ((y - per_channel(shift)) / per_channel(scale)).to(like.scalar_type()).contiguous();
  });
  const int64_t rows = x.size(0) * x.size(1);
  const Tensor flat = x.view({rows, x.size(2) * x.size(3)}), places = kept.places->view({rows});
  flat.index_copy_(0, (places >= 0).nonzero().view({-1}), kept.rows);
  return x;
}

// New nodes of autograd's graph, at which derivatives end: they are partial ones, although x may depend on the identity.
variable_list fresh(const variable_list& inputs) {
  variable_list found;
  for (const Tensor& input : inputs) found.push_back(input.defined() ? input.view_as(input) : Tensor());
  return found;
}

// The gradients of what `result` was computed from, as functions that can be differentiated.
variable_list gradients(const Tensor& result, const variable_list& inputs, const Tensor& grad, bool differentiable) {
  variable_list wanted, found(inputs.size());
  std::vector<size_t> where;
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (!inputs[i].defined() || !inputs[i].requires_grad()) continue;
    wanted.push_back(inputs[i]);
    where.push_back(i);
  }
  if (wanted.empty()) return found;
  const variable_list computed = torch::autograd::grad(
      {result}, wanted, {grad}, /*retain_graph=*/differentiable, differentiable, /*allow_unused=*/true);
  for (size_t i = 0; i < where.size(); ++i) found[where[i]] = computed[i];
  return found;
}

// The gradients of a norm's weight and bias from sums for each image and channel (2 x N x C).
std::pair<Tensor, Tensor> vector_gradients(const Tensor& sums, const Norm& norm) {
  return {
      norm.weight ? like(sums.select(0, 1).sum(0), *norm.weight) : Tensor(),
      norm.bias ? like(sums.select(0, 0).sum(0), *norm.bias) : Tensor()};
}

// The gradient of a gate for each image and channel, and the sums with the gate, from those without it (2 x N x C).
std::pair<Tensor, Tensor> gate_gradients(const Tensor& sums, const Norm& norm, const Tensor& gate) {
  const auto dtype = sums.scalar_type();
  const Tensor bias = norm.bias ? norm.bias->detach().to(dtype) : at::zeros({1}, sums.options());
  const Tensor weight = norm.weight ? norm.weight->detach().to(dtype) : at::ones({1}, sums.options());
  return {
      like(sums.select(0, 1) * weight + sums.select(0, 0) * bias, gate),
      sums * gate.detach().to(dtype).view({sums.size(1), sums.size(2)})};
}

bool derivatives(const variable_list& tensors) {
  return at::GradMode::is_enabled() && std::any_of(tensors.begin(), tensors.end(), [](const Tensor& tensor) {
           return tensor.defined() && tensor.requires_grad();
         });
}

// --- relu(norm(x))

std::tuple<Tensor, Tensor> norm_relu_below(
    const Tensor& x, const MaybeTensor& weight, const MaybeTensor& bias, const MaybeTensor& mean,
    const MaybeTensor& variance, double eps) {
  static const auto operation = c10::Dispatcher::singleton()
                                    .findSchemaOrThrow("sa_mmdet_cpu::norm_relu_forward", "")
                                    .typed<decltype(norm_relu_below)>();
  at::AutoDispatchBelowADInplaceOrView guard;
  return operation.call(x.contiguous(), weight, bias, mean, variance, eps);
}

struct NormRelu : torch::autograd::Function<NormRelu> {
  static Tensor forward(
      AutogradContext* ctx, const Tensor& x, const MaybeTensor& weight, const MaybeTensor& bias,
      const MaybeTensor& mean, const MaybeTensor& variance, double eps, bool keep) {
    const auto [out, differences] = norm_relu_below(x, weight, bias, mean, variance, eps);
    const Norm norm{weight, bias, mean, variance, eps};
    keep = keep || !plain(x);
    const Kept kept = keep ? Kept{x, {}} : norm_relu_keep(x.contiguous(), differences, norm);
    if (!keep) remember(ctx, "x", x);
    variable_list saved{out, kept.rows, defined(kept.places)};
    append(saved, norm);
    ctx->save_for_backward(saved);
    ctx->saved_data["eps"] = eps;
    return out;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const variable_list saved = ctx->get_saved_variables();
    const Tensor &grad = grads[0], &out = saved[0];
    const Norm norm = norm_of(saved, 3, ctx->saved_data["eps"].toDouble());
    const Kept kept{saved[1], maybe(saved[2])};
    variable_list found;
    const bool differentiable = at::GradMode::is_enabled();
    if (!differentiable && plain(grad) && plain(out)) {
      const auto [grad_x, sums] =
          norm_relu_backward(grad.contiguous(), out, {kept.rows.contiguous(), kept.places}, norm);
      const auto [grad_weight, grad_bias] = vector_gradients(sums, norm);
      found = {grad_x, grad_weight, grad_bias};
    } else {
      const auto dtype = wide_type(out);
      const Tensor values = out.detach();
      const Tensor z = at::threshold_backward(grad, values, 0);
      const Tensor x = kept.places ? at_place(ctx, "x", recovered(values.to(dtype), kept, norm, values)) : kept.rows;
      at::AutoGradMode enabled(true);
      const variable_list inputs = fresh({x, defined(norm.weight), defined(norm.bias)});
      const Norm own{maybe(inputs[1]), maybe(inputs[2]), norm.mean, norm.variance, norm.eps};
      found = gradients(normed(inputs[0], own, dtype).to(out.scalar_type()), inputs, z, differentiable);
    }
    return {found[0], found[1], found[2], Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

Tensor norm_relu_autograd(
    const Tensor& x, const MaybeTensor& weight, const MaybeTensor& bias, const MaybeTensor& mean,
    const MaybeTensor& variance, double eps, bool keep) {
  if (!derivatives({x, defined(weight), defined(bias)})) {
    return std::get<0>(norm_relu_below(x, weight, bias, mean, variance, eps));
  }
  return NormRelu::apply(x, weight, bias, mean, variance, eps, keep);
}

// --- relu(norm(identity) + gates * norm(x))

std::tuple<Tensor, Tensor> residual_below(
    const Tensor& x, const Tensor& identity, const MaybeTensor& weight, const MaybeTensor& bias,
    const MaybeTensor& mean, const MaybeTensor& variance, double eps, const MaybeTensor& channel_gate,
    const MaybeTensor& position_gate, const MaybeTensor& identity_weight, const MaybeTensor& identity_bias,
    const MaybeTensor& identity_mean, const MaybeTensor& identity_variance, double identity_eps) {
  static const auto operation = c10::Dispatcher::singleton()
                                    .findSchemaOrThrow("sa_mmdet_cpu::residual_forward", "")
                                    .typed<decltype(residual_below)>();
  at::AutoDispatchBelowADInplaceOrView guard;
  return operation.call(
      x.contiguous(), identity.contiguous(), weight, bias, mean, variance, eps, channel_gate, position_gate,
      identity_weight, identity_bias, identity_mean, identity_variance, identity_eps);
}

// Gates for all elements, by PyTorch's operators.
Tensor gated(const Tensor& y, const Gates& gates) {
  Tensor result = y;
  if (gates.channel) result = result * gates.channel->to(y.scalar_type()).reshape({y.size(0), y.size(1), 1, 1});
  if (gates.position) {
    const Tensor wide = gates.position->to(y.scalar_type());
    const int64_t groups = wide.size(1);
    const auto by_group = [&](const Tensor& map) {
      return map.reshape({y.size(0), groups, y.size(1) / groups, y.size(2), y.size(3)});
    };
    result = (by_group(result) * wide.unsqueeze(2)).reshape(y.sizes());
  }
  return result;
}

struct Residual : torch::autograd::Function<Residual> {
  static Tensor forward(
      AutogradContext* ctx, const Tensor& x, const Tensor& identity, const MaybeTensor& weight, const MaybeTensor& bias,
      const MaybeTensor& mean, const MaybeTensor& variance, double eps, const MaybeTensor& channel_gate,
      const MaybeTensor& position_gate, const MaybeTensor& identity_weight, const MaybeTensor& identity_bias,
      const MaybeTensor& identity_mean, const MaybeTensor& identity_variance, double identity_eps, bool keep) {
    const auto [out, added] = residual_below(
        x, identity, weight, bias, mean, variance, eps, channel_gate, position_gate, identity_weight, identity_bias,
        identity_mean, identity_variance, identity_eps);
    const Norm norm{weight, bias, mean, variance, eps};
    const Norm identity_norm{identity_weight, identity_bias, identity_mean, identity_variance, identity_eps};
    const Gates gates{channel_gate, position_gate};
    keep = keep || position_gate || !plain(x);
    const Kept kept = keep ? Kept{x, {}} : residual_keep(x.contiguous(), added, norm, gates);
    if (!keep) remember(ctx, "x", x);
    variable_list saved{out, kept.rows, defined(kept.places), identity, defined(channel_gate), defined(position_gate)};
    append(saved, norm);
    append(saved, identity_norm);
    ctx->save_for_backward(saved);
    ctx->saved_data["eps"] = eps;
    ctx->saved_data["identity_eps"] = identity_eps;
    return out;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const variable_list saved = ctx->get_saved_variables();
    const Tensor &grad = grads[0], &out = saved[0], &identity = saved[3];
    const Kept kept{saved[1], maybe(saved[2])};
    const Gates gates{maybe(saved[4]), maybe(saved[5])};
    const Norm norm = norm_of(saved, 6, ctx->saved_data["eps"].toDouble());
    const Norm identity_norm = norm_of(saved, 10, ctx->saved_data["identity_eps"].toDouble());
    const bool differentiable = at::GradMode::is_enabled();
    // x, identity, weight, bias, gates of channels and positions, weight and bias of the identity's norm
    variable_list found;
    if (!differentiable && plain(grad) && plain(out)) {
      const auto [grad_x, grad_identity, grad_position, sums, identity_sums] = residual_backward(
          grad.contiguous(), out, {kept.rows.contiguous(), kept.places}, identity.contiguous(), norm, identity_norm,
          gates);
      Tensor grad_gate, own = sums;
      if (gates.channel) std::tie(grad_gate, own) = gate_gradients(sums, norm, *gates.channel);
      const auto [grad_weight, grad_bias] = vector_gradients(own, norm);
      const auto [other_weight, other_bias] = vector_gradients(identity_sums, identity_norm);
      found = {grad_x,    grad_identity, grad_weight, grad_bias, grad_gate, gates.position ? like(grad_position, *gates.position) : Tensor(),
               other_weight, other_bias};
    } else {
      const auto dtype = wide_type(out);
      const Tensor values = out.detach(), z = at::threshold_backward(grad, values, 0);
      Tensor x = kept.rows;
      if (kept.places) {
        Tensor y = values.to(dtype) - normed(identity.detach(), identity_norm, dtype).detach();
        if (gates.channel) y = y / gates.channel->detach().to(dtype).view({y.size(0), y.size(1), 1, 1});
        x = at_place(ctx, "x", recovered(y, kept, norm, values));
      }
      at::AutoGradMode enabled(true);
      const variable_list inputs = fresh(
          {x, identity, defined(norm.weight), defined(norm.bias), defined(gates.channel), defined(gates.position),
           defined(identity_norm.weight), defined(identity_norm.bias)});
      const Norm own{maybe(inputs[2]), maybe(inputs[3]), norm.mean, norm.variance, norm.eps};
      const Norm other{
          maybe(inputs[6]), maybe(inputs[7]), identity_norm.mean, identity_norm.variance, identity_norm.eps};
      const Gates own_gates{maybe(inputs[4]), maybe(inputs[5])};
      const Tensor sum = normed(inputs[1], other, dtype) + gated(normed(inputs[0], own, dtype), own_gates);
      found = gradients(sum.to(out.scalar_type()), inputs, z, differentiable);
    }
    const Tensor none;
    return {found[0], found[1], found[2], found[3], none, none, none, found[4],
            found[5], found[6], found[7], none,     none, none, none};
  }
};

Tensor residual_autograd(
    const Tensor& x, const Tensor& identity, const MaybeTensor& weight, const MaybeTensor& bias,
    const MaybeTensor& mean, const MaybeTensor& variance, double eps, const MaybeTensor& channel_gate,
    const MaybeTensor& position_gate, const MaybeTensor& identity_weight, const MaybeTensor& identity_bias,
    const MaybeTensor& identity_mean, const MaybeTensor& identity_variance, double identity_eps, bool keep) {
  if (!derivatives({x, identity, defined(weight), defined(bias), defined(channel_gate), defined(position_gate),
                    defined(identity_weight), defined(identity_bias)})) {
    return std::get<0>(residual_below(
        x, identity, weight, bias, mean, variance, eps, channel_gate, position_gate, identity_weight, identity_bias,
        identity_mean, identity_variance, identity_eps));
  }
  return Residual::apply(
      x, identity, weight, bias, mean, variance, eps, channel_gate, position_gate, identity_weight, identity_bias,
      identity_mean, identity_variance, identity_eps, keep);
}

// --- the means of x over its positions

Tensor row_means_below(const Tensor& x) {
  static const auto operation = c10::Dispatcher::singleton()
                                    .findSchemaOrThrow("sa_mmdet_cpu::row_means", "")
                                    .typed<decltype(row_means_below)>();
  at::AutoDispatchBelowADInplaceOrView guard;
  return operation.call(x.contiguous());
}

struct RowMeans : torch::autograd::Function<RowMeans> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x) {
    ctx->saved_data["sizes"] = x.sizes();
    ctx->saved_data["dtype"] = x.scalar_type();
    return row_means_below(x);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto sizes = ctx->saved_data["sizes"].toIntVector();
    const Tensor each = (grads[0] / static_cast<double>(sizes[2] * sizes[3])).to(ctx->saved_data["dtype"].toScalarType());
    return {each.unsqueeze(2).unsqueeze(3).expand(sizes)};
  }
};

Tensor row_means_autograd(const Tensor& x) { return derivatives({x}) ? RowMeans::apply(x) : row_means_below(x); }

// --- pools of norm(x), which hand x on: what its other users give back is added to in one pass

std::tuple<Tensor, Tensor, Tensor> row_pools_below(
    const Tensor& x, const MaybeTensor& weight, const MaybeTensor& bias, const MaybeTensor& mean,
    const MaybeTensor& variance, double eps) {
  static const auto operation = c10::Dispatcher::singleton()
                                    .findSchemaOrThrow("sa_mmdet_cpu::row_pools_forward", "")
                                    .typed<decltype(row_pools_below)>();
  at::AutoDispatchBelowADInplaceOrView guard;
  return operation.call(x.contiguous(), weight, bias, mean, variance, eps);
}

// The norm of two elements of each row (N x C x 2), in the dtype of the arithmetic.
std::tuple<Tensor, Tensor> normed_pools(const Tensor& elements, const Norm& norm) {
  const Tensor pools = normed(elements.unsqueeze(-1), norm, elements.scalar_type()).squeeze(-1);
  return {pools.select(2, 0), pools.select(2, 1)};
}

struct RowPools : torch::autograd::Function<RowPools> {
  static variable_list forward(
      AutogradContext* ctx, const Tensor& x, const MaybeTensor& weight, const MaybeTensor& bias,
      const MaybeTensor& mean, const MaybeTensor& variance, double eps) {
    const auto [means, extremes, places] = row_pools_below(x, weight, bias, mean, variance, eps);
    const Norm norm{weight, bias, mean, variance, eps};
    variable_list saved{x, means, extremes, places};
    append(saved, norm);
    ctx->save_for_backward(saved);
    ctx->saved_data["eps"] = eps;
    const auto [average, maximum] = normed_pools(at::stack({means, extremes}, 2), norm);
    return {average, maximum, x};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const variable_list saved = ctx->get_saved_variables();
    const Tensor &x = saved[0], &places = saved[3], &grad_x = grads[2];
    const Norm norm = norm_of(saved, 4, ctx->saved_data["eps"].toDouble());
    const bool differentiable = at::GradMode::is_enabled();
    Tensor elements = at::stack({saved[1], saved[2]}, 2);
    if (differentiable) {
      const Tensor rows = x.flatten(2);
      elements = at::stack({rows.mean(2), rows.gather(2, places.unsqueeze(2)).squeeze(2)}, 2).to(wide_type(x));
    }
    at::AutoGradMode enabled(true);
    variable_list inputs = fresh({elements, defined(norm.weight), defined(norm.bias)});
    if (!inputs[0].requires_grad()) inputs[0].requires_grad_();
    const Norm own{maybe(inputs[1]), maybe(inputs[2]), norm.mean, norm.variance, norm.eps};
    const auto [average, maximum] = normed_pools(inputs[0], own);
    const variable_list found =
        gradients(at::stack({average, maximum}, 2), inputs, at::stack({grads[0], grads[1]}, 2), differentiable);
    at::AutoGradMode as_before(differentiable);
    const Tensor share = found[0].select(2, 0) / static_cast<double>(positions(x));
    const Tensor sum = (grad_x + share.to(x.scalar_type()).unsqueeze(2).unsqueeze(3)).contiguous();
    const Tensor single = found[0].select(2, 1).to(x.scalar_type()).unsqueeze(2);
    const Tensor flat = sum.flatten(2);
    const Tensor total = differentiable ? flat.scatter_add(2, places.unsqueeze(2), single)
                                        : flat.scatter_add_(2, places.unsqueeze(2), single);
    return {total.view(x.sizes()), found[1], found[2], Tensor(), Tensor(), Tensor()};
  }
};

std::tuple<Tensor, Tensor, Tensor> row_pools_autograd(
    const Tensor& x, const MaybeTensor& weight, const MaybeTensor& bias, const MaybeTensor& mean,
    const MaybeTensor& variance, double eps) {
  const variable_list found = RowPools::apply(x, weight, bias, mean, variance, eps);
  return {found[0], found[1], found[2]};
}

std::tuple<Tensor, Tensor> channel_pools_below(
    const Tensor& x, const MaybeTensor& weight, const MaybeTensor& bias, const MaybeTensor& mean,
    const MaybeTensor& variance, double eps, const Tensor& gate) {
  static const auto operation = c10::Dispatcher::singleton()
                                    .findSchemaOrThrow("sa_mmdet_cpu::channel_pools_forward", "")
                                    .typed<decltype(channel_pools_below)>();
  at::AutoDispatchBelowADInplaceOrView guard;
  return operation.call(x.contiguous(), weight, bias, mean, variance, eps, gate);
}

struct ChannelPools : torch::autograd::Function<ChannelPools> {
  static variable_list forward(
      AutogradContext* ctx, const Tensor& x, const MaybeTensor& weight, const MaybeTensor& bias,
      const MaybeTensor& mean, const MaybeTensor& variance, double eps, const Tensor& gate) {
    const auto [pools, channels] = channel_pools_below(x, weight, bias, mean, variance, eps, gate);
    variable_list saved{x, channels, gate};
    append(saved, {weight, bias, mean, variance, eps});
    ctx->save_for_backward(saved);
    ctx->saved_data["eps"] = eps;
    return {pools, x};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const variable_list saved = ctx->get_saved_variables();
    const Tensor &x = saved[0], &channels = saved[1], &gate = saved[2];
    const Norm norm = norm_of(saved, 3, ctx->saved_data["eps"].toDouble());
    const bool differentiable = at::GradMode::is_enabled();
    variable_list found;
    if (!differentiable && plain(grads[0]) && plain(grads[1]) && plain(x)) {
      const auto [grad_x, sums] =
          channel_pools_backward(grads[0], grads[1].contiguous(), x.contiguous(), channels, norm, gate);
      const auto [grad_gate, own] = gate_gradients(sums, norm, gate);
      const auto [grad_weight, grad_bias] = vector_gradients(own, norm);
      found = {grad_x, grad_weight, grad_bias, grad_gate};
    } else {
      at::AutoGradMode enabled(true);
      const variable_list inputs = fresh({x, defined(norm.weight), defined(norm.bias), gate});
      const Norm own{maybe(inputs[1]), maybe(inputs[2]), norm.mean, norm.variance, norm.eps};
      const Tensor y = gated(normed(inputs[0], own, wide_type(x)), {inputs[3], {}});
      const Tensor pools = at::stack({y.gather(1, channels.to(at::kLong)).squeeze(1), y.mean(1)}, 1);
      found = gradients(pools, inputs, grads[0], differentiable);
      at::AutoGradMode as_before(differentiable);
      found[0] = found[0].defined() ? grads[1] + found[0] : grads[1];
    }
    return {found[0], found[1], found[2], Tensor(), Tensor(), Tensor(), found[3]};
  }
};

std::tuple<Tensor, Tensor> channel_pools_autograd(
    const Tensor& x, const MaybeTensor& weight, const MaybeTensor& bias, const MaybeTensor& mean,
    const MaybeTensor& variance, double eps, const Tensor& gate) {
  const variable_list found = ChannelPools::apply(x, weight, bias, mean, variance, eps, gate);
  return {found[0], found[1]};
}

// --- shuffle attention

std::tuple<Tensor, Tensor, Tensor, Tensor> shuffle_below(
    const Tensor& x, const MaybeTensor& identity, const MaybeTensor& weight, const MaybeTensor& bias,
    const MaybeTensor& mean, const MaybeTensor& variance, double norm_eps, const MaybeTensor& identity_weight,
    const MaybeTensor& identity_bias, const MaybeTensor& identity_mean, const MaybeTensor& identity_variance,
    double identity_eps, const Tensor& parameters, double eps) {
  static const auto operation = c10::Dispatcher::singleton()
                                    .findSchemaOrThrow("sa_mmdet_cpu::shuffle_attention_forward", "")
                                    .typed<decltype(shuffle_below)>();
  at::AutoDispatchBelowADInplaceOrView guard;
  return operation.call(
      x.contiguous(), identity ? MaybeTensor(identity->contiguous()) : identity, weight, bias, mean, variance, norm_eps,
      identity_weight, identity_bias, identity_mean, identity_variance, identity_eps, parameters, eps);
}

// The six parameters as the rows of one tensor, 6 x K, in the dtype of the arithmetic for x.
Tensor stacked(const Tensor& x, const std::array<Tensor, 6>& parameters) {
  std::vector<Tensor> rows;
  for (const Tensor& parameter : parameters) rows.push_back(parameter.reshape(-1).to(wide_type(x)));
  return at::stack(rows);
}

Tensor shuffled(const Tensor& x) {
  const auto size = x.sizes();
  return x.reshape({size[0], 2, size[1] / 2, size[2], size[3]}).transpose(1, 2).reshape(size);
}

Tensor unshuffled(const Tensor& x) {
  const auto size = x.sizes();
  return x.reshape({size[0], size[1] / 2, 2, size[2], size[3]}).transpose(1, 2).reshape(size);
}

// N x C or N x C x L as N x G x K (x L), of the channel branch (0) or the spatial branch (1).
Tensor branch(const Tensor& x, int64_t k, int64_t which) {
  std::vector<int64_t> size{x.size(0), x.size(1) / (2 * k), 2, k};
  if (x.dim() == 3) size.push_back(x.size(2));
  return x.reshape(size).select(2, which);
}

// The attention of norm(x) by PyTorch's operators; `means` are those of x, whose values may be missing where a channel's
// derivatives do not ask for them.
Tensor attention(const Tensor& x, const Tensor& means, const Norm& norm, const Tensor& parameters, double eps) {
  const int64_t k = parameters.size(1);
  const auto size = x.sizes();
  const auto dtype = parameters.scalar_type();
  const auto row = [&](int64_t i) { return parameters.select(0, i).unsqueeze(-1); };
  const Tensor y = normed(x, norm, dtype).flatten(2);
  const Tensor found = x.flatten(2).to(dtype).mean(2);
  const Tensor exact = (found + (means - found).detach()).unsqueeze(2).unsqueeze(3);
  const Tensor pooled = branch(normed(exact, norm, dtype).flatten(2), k, 0);
  const Tensor channel = branch(y, k, 0) * at::sigmoid(row(0) * pooled + row(1));
  const Tensor spatial = branch(y, k, 1);
  const Tensor deviation = spatial - spatial.mean(-1, true);
  const Tensor normalised = deviation * (deviation.square().mean(-1, true) + eps).rsqrt();
  const Tensor gate = at::sigmoid(row(2) * (row(4) * normalised + row(5)) + row(3));
  return shuffled(at::stack({channel, spatial * gate}, 2).reshape(size));
}

struct Shuffle : torch::autograd::Function<Shuffle> {
  static Tensor forward(
      AutogradContext* ctx, const Tensor& x, const MaybeTensor& identity, const MaybeTensor& weight,
      const MaybeTensor& bias, const MaybeTensor& mean, const MaybeTensor& variance, double norm_eps,
      const MaybeTensor& identity_weight, const MaybeTensor& identity_bias, const MaybeTensor& identity_mean,
      const MaybeTensor& identity_variance, double identity_eps, const Tensor& channel_weight,
      const Tensor& channel_bias, const Tensor& spatial_weight, const Tensor& spatial_bias, const Tensor& group_weight,
      const Tensor& group_bias, double eps, bool keep) {
    const std::array<Tensor, 6> own{channel_weight, channel_bias, spatial_weight,
                                    spatial_bias,   group_weight, group_bias};
    const Tensor parameters = stacked(x, own);
    const auto [out, means, rstd, added] = shuffle_below(
        x, identity, weight, bias, mean, variance, norm_eps, identity_weight, identity_bias, identity_mean,
        identity_variance, identity_eps, parameters, eps);
    const Norm norm{weight, bias, mean, variance, norm_eps};
    const Norm identity_norm{identity_weight, identity_bias, identity_mean, identity_variance, identity_eps};
    keep = keep || !identity || !plain(x);
    const Kept kept = keep ? Kept{x, {}} : shuffle_keep(x.contiguous(), means, added, norm, parameters);
    if (!keep) remember(ctx, "x", x);
    variable_list saved{identity ? out : Tensor(), kept.rows, defined(kept.places), defined(identity), means, rstd};
    append(saved, norm);
    append(saved, identity_norm);
    saved.insert(saved.end(), own.begin(), own.end());
    ctx->save_for_backward(saved);
    ctx->saved_data["norm_eps"] = norm_eps;
    ctx->saved_data["identity_eps"] = identity_eps;
    ctx->saved_data["eps"] = eps;
    return out;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const variable_list saved = ctx->get_saved_variables();
    const Tensor &grad = grads[0], &means = saved[4], &rstd = saved[5];
    const MaybeTensor out = maybe(saved[0]), identity = maybe(saved[3]);
    const Kept kept{saved[1], maybe(saved[2])};
    const Norm norm = norm_of(saved, 6, ctx->saved_data["norm_eps"].toDouble());
    const Norm identity_norm = norm_of(saved, 10, ctx->saved_data["identity_eps"].toDouble());
    const double eps = ctx->saved_data["eps"].toDouble();
    std::array<Tensor, 6> own;
    std::copy(saved.begin() + 14, saved.end(), own.begin());
    const bool differentiable = at::GradMode::is_enabled();
    // x, identity, weight, bias, weight and bias of the identity's norm, the six parameters
    variable_list found;
    if (!differentiable && plain(grad) && plain(means)) {
      const Tensor parameters = stacked(means, own).detach();
      const auto [grad_x, grad_identity, sums, identity_sums] = shuffle_backward(
          grad.contiguous(), {kept.rows.contiguous(), kept.places}, out,
          identity ? MaybeTensor(identity->contiguous()) : identity, means, rstd, norm, identity_norm, parameters);
      const auto [grad_weight, grad_bias] = vector_gradients(sums, norm);
      const auto [other_weight, other_bias] = vector_gradients(identity_sums, identity_norm);
      found = {grad_x, identity ? grad_identity : Tensor(), grad_weight, grad_bias, other_weight, other_bias};
      const int64_t k = parameters.size(1);
      const Tensor pooled = normed(means.unsqueeze(2).unsqueeze(3), norm, means.scalar_type()).detach().flatten(1);
      const auto total = [&](const Tensor& values, int64_t which) { return branch(values, k, which).sum(at::IntArrayRef{0, 1}); };
      const Tensor logits = sums.select(0, 2), spatial = total(logits, 1), normalised = total(sums.select(0, 3), 1);
      const Tensor rows[] = {
          total(logits * pooled, 0),
          total(logits, 0),
          parameters[4] * normalised + parameters[5] * spatial,
          spatial,
          parameters[2] * normalised,
          parameters[2] * spatial};
      for (size_t i = 0; i < 6; ++i) found.push_back(like(rows[i], own[i]));
    } else {
      const auto dtype = means.scalar_type();
      const Tensor z = out ? at::threshold_backward(grad, out->detach(), 0) : grad;
      Tensor x = kept.rows;
      if (kept.places) {
        const Tensor values = out->detach();
        const Tensor gated =
            unshuffled(values.to(dtype) - normed(identity->detach(), identity_norm, dtype).detach()).flatten(2);
        const Tensor parameters = stacked(means, own).detach();
        const int64_t k = parameters.size(1);
        const Tensor pooled = normed(means.unsqueeze(2).unsqueeze(3), norm, dtype).detach().flatten(1);
        const Tensor gate = at::sigmoid(parameters[0] * branch(pooled, k, 0) + parameters[1]);
        const Tensor gates = at::stack({gate, at::ones_like(gate)}, 2).reshape(pooled.sizes());
        const Tensor y = (gated / gates.unsqueeze(2)).reshape(values.sizes());
        x = at_place(ctx, "x", recovered(y, kept, norm, values));
      }
      at::AutoGradMode enabled(true);
      variable_list inputs{
          x, defined(identity), defined(norm.weight), defined(norm.bias), defined(identity_norm.weight),
          defined(identity_norm.bias)};
      inputs.insert(inputs.end(), own.begin(), own.end());
      inputs = fresh(inputs);
      const Norm of_x{maybe(inputs[2]), maybe(inputs[3]), norm.mean, norm.variance, norm.eps};
      const Norm other{
          maybe(inputs[4]), maybe(inputs[5]), identity_norm.mean, identity_norm.variance, identity_norm.eps};
      std::copy(inputs.begin() + 6, inputs.end(), own.begin());
      Tensor sum = attention(inputs[0], means, of_x, stacked(means, own), eps);
      if (identity) sum = sum + normed(inputs[1], other, dtype);
      found = gradients(sum.to(grad.scalar_type()), inputs, z, differentiable);
    }
    const Tensor none;
    return {found[0], found[1], found[2], found[3], none,      none,      none,      found[4], found[5],  none,
            none,     none,     found[6], found[7], found[8], found[9], found[10], found[11], none,     none};
  }
};

Tensor shuffle_autograd(
    const Tensor& x, const MaybeTensor& identity, const MaybeTensor& weight, const MaybeTensor& bias,
    const MaybeTensor& mean, const MaybeTensor& variance, double norm_eps, const MaybeTensor& identity_weight,
    const MaybeTensor& identity_bias, const MaybeTensor& identity_mean, const MaybeTensor& identity_variance,
    double identity_eps, const Tensor& channel_weight, const Tensor& channel_bias, const Tensor& spatial_weight,
    const Tensor& spatial_bias, const Tensor& group_weight, const Tensor& group_bias, double eps, bool keep) {
  if (!derivatives({x, defined(identity), defined(weight), defined(bias), defined(identity_weight),
                    defined(identity_bias), channel_weight, channel_bias, spatial_weight, spatial_bias, group_weight,
                    group_bias})) {
    const Tensor parameters =
        stacked(x, {channel_weight, channel_bias, spatial_weight, spatial_bias, group_weight, group_bias});
    return std::get<0>(shuffle_below(
        x, identity, weight, bias, mean, variance, norm_eps, identity_weight, identity_bias, identity_mean,
        identity_variance, identity_eps, parameters, eps));
  }
  return Shuffle::apply(
      x, identity, weight, bias, mean, variance, norm_eps, identity_weight, identity_bias, identity_mean,
      identity_variance, identity_eps, channel_weight, channel_bias, spatial_weight, spatial_bias, group_weight,
      group_bias, eps, keep);
}

// --- what the dispatcher calls for tensors on the CPU

std::tuple<Tensor, Tensor> norm_relu_cpu(
    const Tensor& x, const MaybeTensor& weight, const MaybeTensor& bias, const MaybeTensor& mean,
    const MaybeTensor& variance, double eps) {
  return norm_relu_forward(x, {weight, bias, mean, variance, eps});
}

std::tuple<Tensor, Tensor> residual_cpu(
    const Tensor& x, const Tensor& identity, const MaybeTensor& weight, const MaybeTensor& bias,
    const MaybeTensor& mean, const MaybeTensor& variance, double eps, const MaybeTensor& channel_gate,
    const MaybeTensor& position_gate, const MaybeTensor& identity_weight, const MaybeTensor& identity_bias,
    const MaybeTensor& identity_mean, const MaybeTensor& identity_variance, double identity_eps) {
  return residual_forward(
      x, identity, {weight, bias, mean, variance, eps},
      {identity_weight, identity_bias, identity_mean, identity_variance, identity_eps}, {channel_gate, position_gate});
}

std::tuple<Tensor, Tensor, Tensor, Tensor> shuffle_cpu(
    const Tensor& x, const MaybeTensor& identity, const MaybeTensor& weight, const MaybeTensor& bias,
    const MaybeTensor& mean, const MaybeTensor& variance, double norm_eps, const MaybeTensor& identity_weight,
    const MaybeTensor& identity_bias, const MaybeTensor& identity_mean, const MaybeTensor& identity_variance,
    double identity_eps, const Tensor& parameters, double eps) {
  return shuffle_forward(
      x, identity, {weight, bias, mean, variance, norm_eps},
      {identity_weight, identity_bias, identity_mean, identity_variance, identity_eps}, parameters, eps);
}

std::tuple<Tensor, Tensor, Tensor> row_pools_cpu(
    const Tensor& x, const MaybeTensor& weight, const MaybeTensor& bias, const MaybeTensor& mean,
    const MaybeTensor& variance, double eps) {
  return row_pools_forward(x, {weight, bias, mean, variance, eps});
}

std::tuple<Tensor, Tensor> channel_pools_cpu(
    const Tensor& x, const MaybeTensor& weight, const MaybeTensor& bias, const MaybeTensor& mean,
    const MaybeTensor& variance, double eps, const Tensor& gate) {
  return channel_pools_forward(x, {weight, bias, mean, variance, eps}, gate);
}

Tensor baked_cpu(
    const Tensor& x, const Tensor& identity, const Tensor& weight, const Tensor& norm_weight, const Tensor& norm_bias,
    double eps) {
  return baked_forward(x.contiguous(), identity.contiguous(), weight, norm_weight, norm_bias, eps);
}

// The operators that sa_mmdet.ops.custom_op calls, which has derivatives of its own.
std::tuple<Tensor, Tensor, Tensor> forward(
    const Tensor& x, const MaybeTensor& identity, const Tensor& scale, const Tensor& shift, const Tensor& parameters,
    double eps) {
  const Norm norm{scale, shift, {}, {}, 0};
  const auto [out, means, rstd, added] = shuffle_forward(x, identity, norm, {}, parameters, eps);
  return {out, means, rstd};
}

std::tuple<Tensor, Tensor, Tensor> backward(
    const Tensor& grad_out, const Tensor& x, const MaybeTensor& out, const Tensor& mean, const Tensor& rstd,
    const Tensor& scale, const Tensor& shift, const Tensor& parameters) {
  const Norm norm{scale, shift, {}, {}, 0};
  const auto [grad_x, grad_identity, sums, none] =
      shuffle_backward(grad_out, {x, {}}, out, {}, mean, rstd, norm, {}, parameters);
  return {grad_x, grad_identity, sums};
}

// What they return for tensors without values.
Tensor map_like(const Tensor& x) { return at::empty_like(x, {}, at::MemoryFormat::Contiguous); }

Tensor rows_like(const Tensor& x) {
  return at::empty_symint({x.sym_size(0), x.sym_size(1)}, x.options().dtype(wide_type(x)));
}

std::tuple<Tensor, Tensor> norm_relu_meta(
    const Tensor& x, const MaybeTensor&, const MaybeTensor&, const MaybeTensor&, const MaybeTensor&, double) {
  return {map_like(x), rows_like(x)};
}

std::tuple<Tensor, Tensor, Tensor> row_pools_meta(
    const Tensor& x, const MaybeTensor&, const MaybeTensor&, const MaybeTensor&, const MaybeTensor&, double) {
  const Tensor rows = rows_like(x);
  return {rows, at::empty_like(rows), at::empty_like(rows, rows.options().dtype(at::kLong))};
}

std::tuple<Tensor, Tensor> channel_pools_meta(
    const Tensor& x, const MaybeTensor&, const MaybeTensor&, const MaybeTensor&, const MaybeTensor&, double,
    const Tensor&) {
  const auto map = [&](int64_t channels, at::ScalarType dtype) {
    return at::empty_symint({x.sym_size(0), channels, x.sym_size(2), x.sym_size(3)}, x.options().dtype(dtype));
  };
  return {map(2, wide_type(x)), map(1, at::kInt)};
}

Tensor max_pool_meta(const Tensor& x) {
  return at::empty_symint(
      {x.sym_size(0), x.sym_size(1), (x.sym_size(2) + 1) / 2, (x.sym_size(3) + 1) / 2}, x.options());
}

std::tuple<Tensor, Tensor> residual_meta(
    const Tensor& x, const Tensor&, const MaybeTensor&, const MaybeTensor&, const MaybeTensor&, const MaybeTensor&,
    double, const MaybeTensor&, const MaybeTensor&, const MaybeTensor&, const MaybeTensor&, const MaybeTensor&,
    const MaybeTensor&, double) {
  return {map_like(x), rows_like(x)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> shuffle_meta(
    const Tensor& x, const MaybeTensor&, const MaybeTensor&, const MaybeTensor&, const MaybeTensor&,
    const MaybeTensor&, double, const MaybeTensor&, const MaybeTensor&, const MaybeTensor&, const MaybeTensor&, double,
    const Tensor&, double) {
  Tensor rstd = at::empty_symint({x.sym_size(0), x.sym_size(1) / 2}, x.options().dtype(wide_type(x)));
  return {map_like(x), rows_like(x), rstd, rows_like(x)};
}

#define NORM "Tensor? weight, Tensor? bias, Tensor? mean, Tensor? variance, float norm_eps"
#define IDENTITY_NORM                                                                    \
  "Tensor? identity_weight, Tensor? identity_bias, Tensor? identity_mean, " \
  "Tensor? identity_variance, float identity_eps"

}  // namespace
}  // namespace sa_mmdet

TORCH_LIBRARY(sa_mmdet_cpu, library) {
  library.def("norm_relu(Tensor x, " NORM ", bool keep) -> Tensor");
  library.def("norm_relu_forward(Tensor x, " NORM ") -> (Tensor, Tensor)");
  library.def("row_means(Tensor x) -> Tensor");
  library.def("row_pools(Tensor(a) x, " NORM ") -> (Tensor, Tensor, Tensor(a))");
  library.def("row_pools_forward(Tensor x, " NORM ") -> (Tensor, Tensor, Tensor)");
  library.def("channel_pools(Tensor(a) x, " NORM ", Tensor gate) -> (Tensor, Tensor(a))");
  library.def("max_pool(Tensor x) -> Tensor");
  library.def("channel_pools_forward(Tensor x, " NORM ", Tensor gate) -> (Tensor, Tensor)");
  const std::string residual =
      "(Tensor x, Tensor identity, " NORM ", Tensor? channel_gate, Tensor? position_gate, " IDENTITY_NORM;
  library.def(("residual" + residual + ", bool keep) -> Tensor").c_str());
  library.def(("residual_forward" + residual + ") -> (Tensor, Tensor)").c_str());
  const std::string shuffle = "(Tensor x, Tensor? identity, " NORM ", " IDENTITY_NORM ", ";
  library.def(
      ("shuffle_attention" + shuffle +
       "Tensor channel_weight, Tensor channel_bias, Tensor spatial_weight, Tensor spatial_bias, Tensor group_weight, "
       "Tensor group_bias, float eps, bool keep) -> Tensor")
          .c_str());
  library.def(
      ("shuffle_attention_forward" + shuffle + "Tensor parameters, float eps) -> (Tensor, Tensor, Tensor, Tensor)")
          .c_str());
  library.def(
      "baked_attention(Tensor x, Tensor identity, Tensor weight, Tensor norm_weight, Tensor norm_bias, float eps) "
      "-> Tensor");
  library.def(
      "forward(Tensor x, Tensor? identity, Tensor scale, Tensor shift, Tensor parameters, float eps) "
      "-> (Tensor, Tensor, Tensor)");
  library.def(
      "backward(Tensor grad_out, Tensor x, Tensor? out, Tensor mean, Tensor rstd, Tensor scale, Tensor shift, "
      "Tensor parameters) -> (Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(sa_mmdet_cpu, CPU, library) {
  library.impl("norm_relu_forward", sa_mmdet::norm_relu_cpu);
  library.impl("row_means", sa_mmdet::row_means);
  library.impl("row_pools_forward", sa_mmdet::row_pools_cpu);
  library.impl("channel_pools_forward", sa_mmdet::channel_pools_cpu);
  library.impl("max_pool", sa_mmdet::max_pool);
  library.impl("residual_forward", sa_mmdet::residual_cpu);
  library.impl("shuffle_attention_forward", sa_mmdet::shuffle_cpu);
  library.impl("baked_attention", sa_mmdet::baked_cpu);
  library.impl("forward", sa_mmdet::forward);
  library.impl("backward", sa_mmdet::backward);
}

TORCH_LIBRARY_IMPL(sa_mmdet_cpu, Meta, library) {
  library.impl("norm_relu_forward", sa_mmdet::norm_relu_meta);
  library.impl("row_means", sa_mmdet::rows_like);
  library.impl("row_pools_forward", sa_mmdet::row_pools_meta);
  library.impl("channel_pools_forward", sa_mmdet::channel_pools_meta);
  library.impl("max_pool", sa_mmdet::max_pool_meta);
  library.impl("residual_forward", sa_mmdet::residual_meta);
  library.impl("shuffle_attention_forward", sa_mmdet::shuffle_meta);
}

// These call the operators above, whether or not there is something to differentiate.
TORCH_LIBRARY_IMPL(sa_mmdet_cpu, CompositeExplicitAutograd, library) {
  library.impl("norm_relu", sa_mmdet::norm_relu_autograd);
  library.impl("row_pools", sa_mmdet::row_pools_autograd);
  library.impl("channel_pools", sa_mmdet::channel_pools_autograd);
  library.impl("residual", sa_mmdet::residual_autograd);
  library.impl("shuffle_attention", sa_mmdet::shuffle_autograd);
}

TORCH_LIBRARY_IMPL(sa_mmdet_cpu, Autograd, library) {
  library.impl("norm_relu", sa_mmdet::norm_relu_autograd);
  library.impl("row_means", sa_mmdet::row_means_autograd);
  library.impl("row_pools", sa_mmdet::row_pools_autograd);
  library.impl("channel_pools", sa_mmdet::channel_pools_autograd);
  library.impl("residual", sa_mmdet::residual_autograd);
  library.impl("shuffle_attention", sa_mmdet::shuffle_autograd);
}
