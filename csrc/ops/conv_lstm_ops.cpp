// The ops fastlstm::conv_lstm_fwd and conv_lstm_bwd: the LSTM family whose products are convolutions. Images are channels-last.
#include "ops/ops.h"
#include "ops/pixel_pairs.h"
#include "products/winograd.h"

namespace fastlstm {
namespace {

using Ints = std::vector<int64_t>;

Ints shape_of(const Tensor& t) { return {t.sizes().begin(), t.sizes().end()}; }

Ints kernel(const Tensor& w) { return {w.sizes().begin() + 1, w.sizes().end() - 1}; }

// Leading dimensions, then the image, then channels.
Ints image_shape(Ints leading, const Ints& image, Ints channels) {
  leading.insert(leading.end(), image.begin(), image.end());
  leading.insert(leading.end(), channels.begin(), channels.end());
  return leading;
}

// One call's sizes, which is all that the two ops make of their arguments' shapes.
struct Shapes {
  Sequence seq;
  Sizes size;
  Images images;
  Ints image;         // S'
  int64_t sequences;  // B

  Ints steps() const { return image_shape({seq.T, sequences}, image, {size.H}); }
  Ints states() const { return image_shape({sequences}, image, {size.H}); }
  int64_t rows() const { return seq.T * seq.B; }
};

Shapes make_shapes(const Tensor& x, const Optional& batch_sizes, const Optional& reset, const Tensor& h0, const Tensor& c0,
                   const Tensor& w_ih, const Tensor& w_hh, const Optional& b_ih, const Optional& b_hh, const Optional& w_peephole,
                   const Ints& stride, const Ints& padding, const Ints& dilation, bool fresh, bool reverse, const Variant& v) {
  Shapes s;
  const int64_t dims = x.dim() - 3, unused = kAxes - dims;
  check(x.is_cpu() && dims >= 1 && dims <= kAxes, "x must be (T, B, *S, C) on the CPU, S of 1 to 3 dimensions");
  check(w_ih.dim() == dims + 2 && w_hh.dim() == dims + 2 && h0.dim() == dims + 2,
        "w_ih, w_hh and h0 must have as many dimensions as images of x");
  const auto fits = [&](const Ints& of, int64_t n) { return static_cast<int64_t>(of.size()) == n; };
  check(fits(stride, dims) && fits(dilation, dims) && fits(padding, 2 * dims),
        "stride, dilation and padding must have 1, 1 and 2 numbers for each dimension of S");
  s.seq.T = x.size(0), s.seq.B = s.sequences = x.size(1), s.seq.packed = false, s.seq.reverse = reverse;
  const int64_t C = x.size(dims + 2), H = h0.size(dims + 1);
  s.images.fresh = fresh;
  s.images.x_t = x.stride(0), s.images.x_b = x.stride(1), s.images.x_c = x.stride(dims + 2), s.images.x_pixel = {};
  for (int64_t d = 0; d < dims; d++) {
    Axis &ih = s.images.ih.axes[unused + d], &hh = s.images.hh.axes[unused + d];
    ih = {.in = x.size(2 + d), .kernel = w_ih.size(1 + d), .stride = stride[d], .dilation = dilation[d], .before = padding[2 * d]};
    constexpr int64_t kMost = int64_t{1} << 31;
    check(ih.kernel > 0, "kernels must be positive");
    check(ih.stride > 0 && ih.dilation > 0 && ih.stride < kMost && ih.dilation < kMost && ih.kernel < kMost,
          "stride and dilation must be positive, and, as the kernel, less than 2^31");
    check(padding[2 * d] >= 0 && padding[2 * d + 1] >= 0 && padding[2 * d] < kMost && padding[2 * d + 1] < kMost && ih.in < kMost,
          "padding must not be negative, and, as the image, be less than 2^31");
    ih.out = (ih.in + ih.before + padding[2 * d + 1] - ih.dilation * (ih.kernel - 1) - 1) / ih.stride + 1;
    check(ih.in + ih.before + padding[2 * d + 1] >= ih.dilation * (ih.kernel - 1) + 1, "an image of x is smaller than the kernel");
    const int64_t kernel = w_hh.size(1 + d);
    check(kernel > 0, "kernels must be positive");
    hh = {.in = ih.out, .out = ih.out, .kernel = kernel, .before = (kernel - 1) / 2};
    s.images.x_pixel[unused + d] = x.stride(2 + d);
    s.image.push_back(ih.out);
  }
  s.seq.pixels = s.images.ih.out();
  s.size = {C, H, H, false};
  const bool of_pixels = w_peephole && w_peephole->dim() > 2;
  if (of_pixels) s.size.peephole_rows = s.seq.pixels;
  const int64_t gates = v.ih.gates * H, peepholes = v.peepholes.size();
  check_like(x, h0, "h0", s.states());
  check_like(x, c0, "c0", s.states());
  check_like(x, w_ih, "w_ih", image_shape({gates}, kernel(w_ih), {C}));
  check_like(x, w_hh, "w_hh", image_shape({gates}, kernel(w_hh), {H}));
  check_like(x, b_ih, "b_ih", {gates});
  check_like(x, b_hh, "b_hh", {gates});
  check_like(x, w_peephole, "w_peephole", image_shape({peepholes}, of_pixels ? s.image : Ints{}, {H}));
  read_batch_sizes(s.seq, batch_sizes);
  read_reset(s.seq, reset, {s.seq.T, s.sequences});
  // from here on, rows are pixels
  s.seq.B *= s.seq.pixels;
  for (int64_t t = 0; t < s.seq.T; t++) {
    s.seq.size[t] *= s.seq.pixels;
    s.seq.first.push_back(t * s.seq.B);
  }
  return s;
}

// Takes pixels in pairs, where they should be; the inputs' channels must then lie side by side.
std::optional<PixelPairs> make_pairs(Shapes& s, Tensor& x, const Optional& w_peephole, const Variant& v) {
  if (!PixelPairs::suit(s.size, s.images)) return std::nullopt;
  if (!PixelPairs::lie_together(s.size.I, s.images)) {
    x = as_contiguous(x);
    const int64_t dims = x.dim() - 3;
    s.images.x_t = x.stride(0), s.images.x_b = x.stride(1), s.images.x_c = x.stride(dims + 2);
    for (int64_t d = 0; d < dims; d++) s.images.x_pixel[kAxes - dims + d] = x.stride(2 + d);
  }
  return PixelPairs(v.ih.gates, v.peepholes.size(), w_peephole && w_peephole->dim() > 2, s.seq, s.size, s.images);
}

// The strides of a tensor whose channels, which are last, come before its images in memory.
Ints moved_strides(Ints leading, const Ints& image, int64_t channels) {
  leading.push_back(channels);
  Ints strides = contiguous_strides(image_shape(leading, image, {}));
  std::rotate(strides.end() - 1 - image.size(), strides.end() - image.size(), strides.end());
  return strides;
}

// A tensor of images, channels last; `moved`: in memory, they come before the pixels.
Tensor new_images(const Tensor& like, const Shapes& s, const Ints& leading, bool moved) {
  const Ints shape = image_shape(leading, s.image, {s.size.H});
  return moved ? new_strided(like.scalar_type(), shape, moved_strides(leading, s.image, s.size.H)) : new_tensor(like, shape);
}

// Whether in each image of `t`, whose channels are last, they lie before the last `dims` dimensions.
bool maps_are_moved(const Tensor& t, int64_t dims) {
  const int64_t channels = t.dim() - 1;
  int64_t n = 1;
  for (int64_t d = channels - 1; d >= channels - dims; n *= t.size(d--))
    if (t.size(d) > 1 && t.stride(d) != n) return false;
  return t.size(channels) <= 1 || t.stride(channels) == n;
}
// And images follow one another.
bool is_moved(const Tensor& t, int64_t dims) {
  int64_t n = t.size(t.dim() - 1);
  for (int64_t d = t.dim() - 2; d >= 0; n *= t.size(d--))
    if (d < t.dim() - 1 - dims && t.size(d) > 1 && t.stride(d) != n) return false;
  return maps_are_moved(t, dims);
}

// What came for each step, as it is where it can be read so.
Optional readable(const Optional& t, int64_t dims) { return t && maps_are_moved(*t, dims) ? t : as_contiguous(t); }
template <class S>
Rows<const S> rows_of_images(const Optional& t, const Sequence& seq, int64_t H) {
  if (!t) return {};
  if (!t->is_contiguous()) return {data<S>(*t), t->stride(0), t->stride(1), true};
  return {data<S>(*t), seq.B * H, H};
}

// States in the same way.
Tensor readable_state(const Tensor& t, int64_t dims) { return is_moved(t, dims) ? t : as_contiguous(t); }
Optional readable_state(const Optional& t, int64_t dims) { return t ? Optional(readable_state(*t, dims)) : std::nullopt; }
template <class S>
State<S> state_of(const Optional& t) { return t ? State<S>(data<S>(*t), !t->is_contiguous()) : State<S>(); }

// Weights as they are, where they can be read so.
void take_weights(Shapes& s, Tensor& w_ih, Tensor& w_hh) {
  const Bf16Kernels* const bf16 = w_ih.scalar_type() == ScalarType::BFloat16 ? bf16_kernels() : nullptr;
  const bool either_way = !s.images.paired && ((bf16 && bf16->terms_together) || suits_winograd(s.images, s.size.R));
  const int64_t dims = static_cast<int64_t>(s.image.size());
  s.images.taps_inside = either_way && is_moved(w_ih, dims) && is_moved(w_hh, dims);
  if (!s.images.taps_inside) w_ih = as_contiguous(w_ih), w_hh = as_contiguous(w_hh);
}

// Whether gradients of weights are to lie as PyTorch has weights, channels before taps, so that it adds to them without a copy.
// fastlstm/ops/conv_lstm.py knows it as well.
bool gradients_are_moved(const Tensor& w_ih, const Tensor& w_hh, int64_t dims) {
  const auto moved = [&](const Tensor& w) { return w.numel() == 0 || is_moved(w, dims); };
  return moved(w_ih) && moved(w_hh) && !(w_ih.is_contiguous() && w_hh.is_contiguous());
}

int64_t saved_row(const Variant& v, const Sizes& size) { return panels_of(size.H) * Record(v, size).saved(); }

// `moved`: y, cells, and h_n and c_n where they are not given, lie with channels before the pixels of an image, as PyTorch's usual layout
// has them. `return_y`: else the last step is all that is wanted of h, which h_n is, and y is empty.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> forward(
    Tensor x, Optional batch_sizes, Optional reset, Tensor h0, Tensor c0, Tensor w_ih, Tensor w_hh, Optional b_ih, Optional b_hh,
    Optional w_peephole, Ints stride, Ints padding, Ints dilation, bool coupled, bool fresh, bool reverse, bool return_cells, bool save,
    bool moved, bool return_y, Optional given_h_n, Optional given_c_n) {
  const Variant& variant = lstm_variant(coupled, w_peephole.has_value());
  Shapes s = make_shapes(x, batch_sizes, reset, h0, c0, w_ih, w_hh, b_ih, b_hh, w_peephole, stride, padding, dilation, fresh, reverse,
                         variant);
  const int64_t dims = static_cast<int64_t>(s.image.size());
  const Optional from_h = fresh ? std::nullopt : Optional(readable_state(h0, dims));
  const Optional from_c = fresh ? std::nullopt : Optional(readable_state(c0, dims));
  b_ih = as_contiguous(b_ih), b_hh = as_contiguous(b_hh), w_peephole = as_contiguous(w_peephole);
  s.images.moved = moved;
  const Ints steps{s.seq.T, s.sequences};
  const auto every = [&](bool wanted) { return wanted ? new_images(x, s, steps, moved) : new_tensor(x, {0}); };
  const Tensor y = every(return_y), cells = every(return_cells);
  const auto final_state = [&](const Optional& given, const char* name) {
    check_like(x, given, name, s.states());
    return given ? *given : new_images(x, s, {s.sequences}, moved);
  };
  const Tensor h_n = final_state(given_h_n, "h_n"), c_n = final_state(given_c_n, "c_n");
  s.images.finals_moved = !h_n.is_contiguous();
  check(h_n.is_contiguous() ? c_n.is_contiguous() : is_moved(h_n, dims) && is_moved(c_n, dims),
        "h_n and c_n must lie as maps do, and alike");
  std::optional<PixelPairs> pairs = make_pairs(s, x, w_peephole, variant);
  take_weights(s, w_ih, w_hh);
  const Tensor saved = new_saved(x, save ? s.rows() : 0, saved_row(variant, s.size), compute_type(x.scalar_type()));
  for_storage_type(x.scalar_type(), [&]<class S>(S) {
    const Weights<S> w{data<S>(w_ih), data<S>(w_hh), data<S>(b_ih), data<S>(b_hh), nullptr, data<S>(w_peephole)};
    ForwardCall<S>{.variant = variant, .seq = s.seq, .size = s.size, .w = pairs ? pairs->weights(w) : w,
                   .x = {data<S>(x)}, .images = &s.images, .h0 = state_of<S>(from_h), .c0 = state_of<S>(from_c),
                   .y = return_y ? out<S>(y) : nullptr, .h_n = out<S>(h_n), .c_n = out<S>(c_n),
                   .cells = return_cells ? out<S>(cells) : nullptr,
                   .saved = save ? out<compute_t<S>>(saved) : nullptr}
        .run();
  });
  return {y, h_n, c_n, cells, saved};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> conv_lstm_fwd(
    Tensor x, Optional batch_sizes, Optional reset, Tensor h0, Tensor c0, Tensor w_ih, Tensor w_hh, Optional b_ih, Optional b_hh,
    Optional w_peephole, Ints stride, Ints padding, Ints dilation, bool coupled, bool fresh, bool reverse, bool return_cells, bool save,
    bool moved, bool return_y) {
  return forward(x, batch_sizes, reset, h0, c0, w_ih, w_hh, b_ih, b_hh, w_peephole, stride, padding, dilation, coupled, fresh, reverse,
                 return_cells, save, moved, return_y, std::nullopt, std::nullopt);
}

// The same, which writes the final states where they are wanted.
std::tuple<Tensor, Tensor, Tensor> conv_lstm_fwd_into(
    Tensor x, Optional batch_sizes, Optional reset, Tensor h0, Tensor c0, Tensor w_ih, Tensor w_hh, Optional b_ih, Optional b_hh,
    Optional w_peephole, Ints stride, Ints padding, Ints dilation, bool coupled, bool fresh, bool reverse, bool return_cells, bool save,
    bool moved, bool return_y, Tensor h_n, Tensor c_n) {
  const auto found = forward(x, batch_sizes, reset, h0, c0, w_ih, w_hh, b_ih, b_hh, w_peephole, stride, padding, dilation, coupled, fresh,
                             reverse, return_cells, save, moved, return_y, h_n, c_n);
  return {std::get<0>(found), std::get<3>(found), std::get<4>(found)};
}

// Gradients that are not wanted come back empty (zero elements). Those that are given may lie as `moved` outputs do.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> conv_lstm_bwd(
    Optional dy, Optional dh_n, Optional dc_n, Optional dcells, Tensor x, Optional batch_sizes, Optional reset, Tensor h0, Tensor c0,
    Tensor w_ih, Tensor w_hh, Optional w_peephole, Tensor saved, Ints stride, Ints padding, Ints dilation, bool coupled,
    bool fresh, bool reverse, bool need_dx, bool need_dw) {
  const Variant& variant = lstm_variant(coupled, w_peephole.has_value());
  Shapes s = make_shapes(x, batch_sizes, reset, h0, c0, w_ih, w_hh, std::nullopt, std::nullopt, w_peephole, stride, padding, dilation,
                         fresh, reverse, variant);
  check_like(x, dy, "dy", s.steps());
  check_like(x, dcells, "dcells", s.steps());
  check_like(x, dh_n, "dh_n", s.states());
  check_like(x, dc_n, "dc_n", s.states());
  const Tensor dx = need_dx ? new_tensor(x, shape_of(x)) : new_tensor(x, {0});
  std::optional<PixelPairs> pairs = make_pairs(s, x, w_peephole, variant);
  check_saved(saved, x.scalar_type(), s.rows(), saved_row(variant, s.size), "conv_lstm_fwd");
  const int64_t dims = static_cast<int64_t>(s.image.size());
  dy = readable(dy, dims), dcells = readable(dcells, dims);
  dh_n = readable_state(dh_n, dims), dc_n = readable_state(dc_n, dims);
  const Optional from_h = fresh ? std::nullopt : Optional(readable_state(h0, dims));
  const Optional from_c = fresh ? std::nullopt : Optional(readable_state(c0, dims));
  const bool moved = gradients_are_moved(w_ih, w_hh, dims);
  s.images.gradients_inside = moved && !pairs;
  take_weights(s, w_ih, w_hh);
  saved = as_contiguous(saved), w_peephole = as_contiguous(w_peephole);
  const Tensor dh0 = gradient_of(x, h0, !fresh), dc0 = gradient_of(x, c0, !fresh);
  Tensor dw_ih, dw_hh, db, dw_peephole;
  const auto like_weights = [&](const Tensor& w) {
    return gradient_of(x, w, need_dw, moved ? moved_strides({w.size(0)}, kernel(w), w.size(dims + 1)) : Ints{});
  };
  const auto make_dw = [&] {
    dw_ih = like_weights(w_ih), dw_hh = like_weights(w_hh);
    db = new_tensor(x, {need_dw ? w_ih.size(0) : 0}), dw_peephole = gradient_of(x, w_peephole, need_dw);
  };
  if (!need_dw) make_dw();
  for_storage_type(x.scalar_type(), [&]<class S>(S) {
    const Rows<const S> x_rows{data<S>(x)};
    const Weights<S> w{data<S>(w_ih), data<S>(w_hh), nullptr, nullptr, nullptr, data<S>(w_peephole)};
    WeightGradients<S> of_pixels{};
    WeightGradients<compute_t<S>> of_pairs{};
    BackwardCall<S>{.variant = variant, .seq = s.seq, .size = s.size, .w = pairs ? pairs->weights(w) : w, .x = x_rows,
                    .dy = rows_of_images<S>(dy, s.seq, s.size.H), .dcells = rows_of_images<S>(dcells, s.seq, s.size.H),
                    .images = &s.images, .h0 = state_of<S>(from_h), .c0 = state_of<S>(from_c),
                    .dh_n = state_of<S>(dh_n), .dc_n = state_of<S>(dc_n), .saved = data<compute_t<S>>(saved),
                    .dx = need_dx ? out<S>(dx) : nullptr, .dh0 = fresh ? nullptr : out<S>(dh0), .dc0 = fresh ? nullptr : out<S>(dc0),
                    .need_dw = need_dw, .make_dw = [&] {
                      make_dw();
                      of_pixels = {out<S>(dw_ih), out<S>(dw_hh), out<S>(db), nullptr, nullptr, out<S>(dw_peephole)};
                      return pairs ? pairs->gradients(of_pixels, of_pairs) : of_pixels;
                    }}
        .run();
    if (pairs && need_dw) pairs->add_up(of_pairs, of_pixels, moved);
  });
  return {dx, dh0, dc0, dw_ih, dw_hh, db, dw_peephole};
}

}  // namespace
}  // namespace fastlstm

STABLE_TORCH_LIBRARY_FRAGMENT(fastlstm, m) {
  m.def(
      "conv_lstm_fwd(Tensor x, Tensor? batch_sizes, Tensor? reset, Tensor h0, Tensor c0, Tensor w_ih, Tensor w_hh, Tensor? b_ih, "
      "Tensor? b_hh, Tensor? w_peephole, int[] stride, int[] padding, int[] dilation, bool coupled, bool fresh, bool reverse, "
      "bool return_cells, bool save, bool moved=False, bool return_y=True) -> (Tensor y, Tensor h_n, Tensor c_n, Tensor cells, "
      "Tensor saved)");
  m.def(
      "conv_lstm_fwd_into(Tensor x, Tensor? batch_sizes, Tensor? reset, Tensor h0, Tensor c0, Tensor w_ih, Tensor w_hh, Tensor? b_ih, "
      "Tensor? b_hh, Tensor? w_peephole, int[] stride, int[] padding, int[] dilation, bool coupled, bool fresh, bool reverse, "
      "bool return_cells, bool save, bool moved, bool return_y, Tensor(a!) h_n, Tensor(b!) c_n) -> (Tensor y, Tensor cells, "
      "Tensor saved)");
  m.def(
      "conv_lstm_bwd(Tensor? dy, Tensor? dh_n, Tensor? dc_n, Tensor? dcells, Tensor x, Tensor? batch_sizes, Tensor? reset, Tensor h0, "
      "Tensor c0, Tensor w_ih, Tensor w_hh, Tensor? w_peephole, Tensor saved, int[] stride, int[] padding, int[] dilation, "
      "bool coupled, bool fresh, bool reverse, bool need_dx, bool need_dw) -> (Tensor dx, Tensor dh0, Tensor dc0, Tensor dw_ih, "
      "Tensor dw_hh, Tensor db, Tensor dw_peephole)");
}

STABLE_TORCH_LIBRARY_IMPL(fastlstm, CPU, m) {
  m.impl("conv_lstm_fwd", TORCH_BOX(&fastlstm::conv_lstm_fwd));
  m.impl("conv_lstm_fwd_into", TORCH_BOX(&fastlstm::conv_lstm_fwd_into));
  m.impl("conv_lstm_bwd", TORCH_BOX(&fastlstm::conv_lstm_bwd));
}
