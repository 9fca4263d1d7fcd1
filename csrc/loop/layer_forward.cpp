// What the forward of a layer is made of: the products and stages that suit a call.
#include "loop/layer_forward.h"

#include "products/conv_forward.h"
#include "products/packed_forward.h"
#include "products/split_forward.h"
#include "products/turned_forward.h"
#include "products/unfolded_forward.h"
#include "products/unpacked_forward.h"
#include "products/winograd_forward.h"

namespace fastlstm {

template <class S>
void LayerForward<S>::set_up(Team& team) {
  o.team = &team;
  o.chunk_rows = max_chunk_rows(seq);
  make_tiles(team);
  products = make_products(team.plan);
  sink.emplace(o, f, *products);
  auto projection = o.size.project ? make_projection() : nullptr;
  const HiddenTaker<S>* const hidden = projection ? static_cast<const HiddenTaker<S>*>(&*projection) : &*sink;
  stages.push_back(std::make_unique<GateForward<S>>(o, f, *products, *sink, *hidden));
  if (projection) stages.push_back(std::move(projection));
}

template <class S>
std::unique_ptr<ForwardProducts<S>> LayerForward<S>::make_products(const Plan& plan) const {
  if constexpr (Context<S>::kBf16)
    if (o.unfolds()) return std::make_unique<UnfoldedForward<S>>(o);
  if (o.images && suits_winograd(*o.images, o.R)) return std::make_unique<WinogradForward<S>>(o);
  if (o.images) return std::make_unique<ConvForward<S>>(o);
  if constexpr (Context<S>::kSameType || Context<S>::kBf16)
    if ((Context<S>::kSameType || o.bf16) && !f.streams && !o.size.project && seq.T == 1 && seq.rows() <= kUnpackedStepRows)
      return std::make_unique<UnpackedForward<S>>(o);
  if constexpr (Context<S>::kBf16)
    if (o.bf16) return std::make_unique<PackedForward<S, Bf16Pair>>(o, false, f.streams, Gemm<float, Bf16Pair>{}.block, f.stepwise);
  if constexpr (std::is_same_v<S, float>)
    if (o.split) return std::make_unique<SplitForward>(o, plan.precompute_input, f.stepwise);
  if constexpr (Context<S>::kSameType)
    if (!f.streams && !f.stepwise && seq.T == 1 && TurnedForward<S>::suits(o)) return std::make_unique<TurnedForward<S>>(o, f.h0);
  if (f.stepwise) return std::make_unique<PackedForward<S, T>>(o, false, false, kStepwiseBlock);
  return std::make_unique<PackedForward<S, T>>(o, plan.precompute_input, f.streams);
}

template <class S>
std::unique_ptr<ProjectionForward<S>> LayerForward<S>::make_projection() const {
  if constexpr (Context<S>::kBf16)
    if (o.bf16) return std::make_unique<ProjectionForwardBy<S, Bf16Pair>>(o, *sink, f.streams);
  return std::make_unique<ProjectionForwardBy<S, T>>(o, *sink, f.streams);
}

template void LayerForward<float>::set_up(Team&);
template void LayerForward<double>::set_up(Team&);
template void LayerForward<torch::headeronly::BFloat16>::set_up(Team&);
template void LayerForward<torch::headeronly::Half>::set_up(Team&);

}  // namespace fastlstm
