#include "cell/variant.h"

#include <algorithm>
#include <map>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <stdexcept>

namespace fastlstm {
namespace {

// Never destroyed: calls may outlive static objects.
auto& variants = *new std::map<std::string, std::unique_ptr<Variant>>;
auto& others = *new std::map<std::string, Kernels>;
std::shared_mutex& mutex = *new std::shared_mutex;

GateMap make_map(const std::string& name, const std::vector<int64_t>& gates, Slots slots) {
  const bool fits = slots.first >= 0 && slots.count > 0 && slots.count <= kMaxGates &&
                    slots.first + slots.count <= static_cast<int64_t>(gates.size());
  if (!fits) throw std::invalid_argument("variant '" + name + "': a weight feeds slots that the record does not have");
  GateMap map{slots.first, slots.count, {}};
  std::copy_n(gates.begin() + slots.first, slots.count, map.gate.begin());
  for (int64_t i = 0; i < slots.count; i++)
    if (std::count(map.gate.begin(), map.gate.begin() + slots.count, i) != 1)
      throw std::invalid_argument("variant '" + name + "': a weight feeds one slot from each of its gates");
  return map;
}

bool alike(const GateMap& a, const GateMap& b) { return a.first == b.first && a.gates == b.gates && a.gate == b.gate; }

bool alike(const Variant& a, const Variant& b) {
  const auto same = [](const Peephole& p, const Peephole& q) { return p.slot == q.slot && p.sees_new == q.sees_new; };
  return alike(a.ih, b.ih) && alike(a.hh, b.hh) && a.slots == b.slots && a.cell == b.cell &&
         std::equal(a.peepholes.begin(), a.peepholes.end(), b.peepholes.begin(), b.peepholes.end(), same);
}

}  // namespace

void register_variant(const std::string& name, const std::vector<int64_t>& gates, Slots x, Slots h,
                      const std::vector<Peephole>& peepholes, bool cell) {
  auto made = std::make_unique<Variant>();
  made->name = name;
  made->ih = make_map(name, gates, x), made->hh = make_map(name, gates, h);
  made->slots = static_cast<int64_t>(gates.size());
  made->peepholes = peepholes;
  made->cell = cell;
  const auto end = [](const GateMap& map) { return map.first + map.gates; };
  const bool fed = std::min(made->ih.first, made->hh.first) == 0 && std::max(end(made->ih), end(made->hh)) == made->slots &&
                   std::max(made->ih.first, made->hh.first) <= std::min(end(made->ih), end(made->hh));
  if (!fed) throw std::invalid_argument("variant '" + name + "': no weight feeds some of its slots");
  std::vector<bool> seen(gates.size());
  for (const Peephole& p : peepholes) {
    if (p.slot < 0 || p.slot >= made->slots || seen[p.slot])
      throw std::invalid_argument("variant '" + name + "': a peephole of no slot, or the second of one");
    seen[p.slot] = true;
  }
  const std::unique_lock lock(mutex);
  const auto [known, is_new] = variants.try_emplace(name, std::move(made));
  if (!is_new && !alike(*known->second, *made)) throw std::invalid_argument("variant '" + name + "' is registered already, as another");
}

const Variant& find_variant(const std::string& name) {
  const std::shared_lock lock(mutex);
  const auto found = variants.find(name);
  if (found == variants.end())
    throw std::runtime_error("fastlstm: no variant '" + name + "' is registered; import fastlstm before calling its ops");
  return *found->second;
}

const Kernels& find_kernels(const std::string& name) {
  const std::unique_lock lock(mutex);
  const auto [found, is_new] = others.try_emplace(name);
  if (is_new) found->second.name = name;
  return found->second;
}

void forget_kernels() {
  const std::unique_lock lock(mutex);
  for (const auto& [name, variant] : variants)
    for (auto& address : variant->addresses) address = nullptr;
  for (const auto& [name, kernels] : others)
    for (auto& address : kernels.addresses) address = nullptr;
}

}  // namespace fastlstm
