// What the backward of a layer is made of: the products and stages that suit a call.
#include "loop/layer_backward.h"

#include "products/conv_backward.h"
#include "products/packed_backward.h"
#include "products/split_backward.h"
#include "products/step_backward.h"
#include "products/unfolded_backward.h"
#include "products/unpacked_backward.h"
#include "products/widened_backward.h"
#include "products/winograd_backward.h"

namespace fastlstm {

template <class S>
void LayerBackward<S>::set_up(Team& team) {
  o.team = &team;
  o.chunk_rows = max_chunk_rows(seq);
  int64_t of_product = o.images ? ImageBackward<S>::kTileSize : PackedBackward<S, T>::tile_size(o);
  if constexpr (std::is_same_v<S, float>)
    if (o.split) of_product = SplitBackward::tile_size(o);
  o.make_tiles(std::max(team.plan.tile_rows * o.record.backward(), of_product), team.workers);
  dh = States<T>::by_rows(seq.B, o.r_panels);
  products = make_products();
  if (o.size.project) projection = make_projection();
  gates.emplace(o, f, *products, dh, projection.get());
  states.emplace(o, f, *products, dh);
  if (projection) stages.push_back(&*projection);
  stages.push_back(&*gates);
  stages.push_back(&*states);
}

template <class S>
std::unique_ptr<BackwardProducts<S>> LayerBackward<S>::make_products() {
  if constexpr (Context<S>::kBf16)
    if (o.unfolds()) return std::make_unique<UnfoldedBackward<S>>(o, f);
  if (o.images && suits_winograd(*o.images, o.R)) return std::make_unique<WinogradBackward<S>>(o, f);
  if (o.images) return std::make_unique<ConvBackward<S>>(o, f);
  if constexpr (std::is_same_v<S, float>)
    if (o.split) return std::make_unique<SplitBackward>(o, f);
  if constexpr (Context<S>::kSameType)
    if (!o.size.project && !f.stepwise_columns && UnpackedBackward<S>::suits(o)) {
      unpacked = true;
      if (f.need_dw) gradients = f.make_dw();
      return std::make_unique<UnpackedBackward<S>>(o, f, gradients);
    }
  if constexpr (Context<S>::kBf16)
    if (o.bf16 && !o.size.project && !f.stepwise_columns && seq.T == 1) {
      const bool tiles = o.bf16->terms_together, few = seq.rows() <= (tiles ? WidenedBackward::kRowsBesideTiles : WidenedBackward::kRows);
      unpacked = few || tiles;
      if (unpacked && f.need_dw) gradients = f.make_dw();
      if (few) return std::make_unique<WidenedBackward>(o, f, gradients);
      if (tiles) return std::make_unique<StepBackward>(o, f, gradients);
    }
  if constexpr (Context<S>::kBf16)
    if (o.bf16) return std::make_unique<PackedBackward<S, Bf16Pair>>(o, f);
  return std::make_unique<PackedBackward<S, T>>(o, f);
}

template <class S>
std::unique_ptr<ProjectionBackward<S>> LayerBackward<S>::make_projection() const {
  if constexpr (Context<S>::kBf16)
    if (o.bf16) return std::make_unique<ProjectionBackwardBy<S, Bf16Pair>>(o, f, dh);
  return std::make_unique<ProjectionBackwardBy<S, T>>(o, f, dh);
}

template void LayerBackward<float>::set_up(Team&);
template void LayerBackward<double>::set_up(Team&);
template void LayerBackward<torch::headeronly::BFloat16>::set_up(Team&);
template void LayerBackward<torch::headeronly::Half>::set_up(Team&);

}  // namespace fastlstm
