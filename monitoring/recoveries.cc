#include "monitoring/recoveries.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <utility>

namespace perdure {
namespace {

using Json = nlohmann::json;

constexpr int64_t kNumberMax = int64_t{1} << 53;
constexpr size_t kLossesMax = size_t{1} << 20;  // Steps that are remembered.

// A whole number of [0, 2^53]; nothing: it is not one.
std::optional<int64_t> Number(const Json& line, const char* key) {
  const auto at = line.find(key);
  if (at == line.end() || !at->is_number_integer()) return std::nullopt;
  const bool large = at->is_number_unsigned() && at->get<uint64_t>() > uint64_t{kNumberMax};
  if (large || at->get<int64_t>() < 0) return std::nullopt;
  return at->get<int64_t>();
}

std::string Text(const Json& line, const char* key) {
  const auto at = line.find(key);
  return at != line.end() && at->is_string() ? at->get<std::string>() : std::string();
}

std::optional<JournalTime> TimeOf(const Json& line) {
  JournalTime time;
  const auto clock = line.find("clock");
  const std::optional<int64_t> coordinator = Number(line, "coordinator");
  std::string wrong;
  if (clock == line.end() || !clock->is_number() || !coordinator.has_value() ||
      !absl::ParseTime(absl::RFC3339_full, Text(line, "time"), &time.wall, &wrong))
    return std::nullopt;
  time.clock = clock->get<double>();
  if (!std::isfinite(time.clock) || time.clock < 0 || time.clock > 1e12) return std::nullopt;
  time.coordinator = *coordinator;
  return time;
}

bool IsLossBits(const std::string& text) {
  return text.size() == 16 && text.find_first_not_of("0123456789abcdef") == text.npos;
}

}  // namespace

double SecondsBetween(const JournalTime& from, const JournalTime& to, bool one_machine) {
  if (one_machine || from.coordinator == to.coordinator) return to.clock - from.clock;
  return absl::ToDoubleSeconds(to.wall - from.wall);
}

// The recovery that is not over.
Recovery* JournalStory::Open() {
  return recoveries_.empty() || recoveries_.back().stepped.has_value() ? nullptr
                                                                       : &recoveries_.back();
}

void JournalStory::Forget() {
  recoveries_.clear();
  disagreements_.clear();
  slow_.clear();
  left_from_ = left_before_ = 0;
  told_twice_ = 0;
  taken_over_ = ended_ = false;
}

bool JournalStory::Read(std::string_view text) {
  if (text.empty() || text.size() > kLineBytesMax) return false;
  const Json line = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!line.is_object()) return false;
  const std::string event = Text(line, "event");
  if (event == "end") {
    ended_ = true;
    return true;
  }
  const std::optional<int64_t> number = Number(line, "generation");
  const std::optional<int64_t> step = Number(line, "step");
  if (!number.has_value() || *number == 0) return false;
  const auto generation = static_cast<uint64_t>(*number);

  if (event == "step" || event == "step_told_again") {
    const std::string bits = Text(line, "loss_bits");
    if (!step.has_value() || !IsLossBits(bits)) return false;
    if (event == "step") step_ = *step;
    told_generation_ = generation;
    told_step_ = *step;
    // Of steps that the run has left: they are taken again on other samples.
    if (generation < left_before_ && *step >= left_from_) return true;
    const auto [told, fresh] = losses_.try_emplace(*step, Loss{generation, bits});
    if (losses_.size() > kLossesMax) losses_.erase(losses_.begin());
    if (fresh) return true;
    ++told_twice_;
    if (told->second.loss_bits != bits)
      disagreements_.push_back({.step = *step,
                                .generation = told->second.generation,
                                .other_generation = generation,
                                .loss_bits = told->second.loss_bits,
                                .other_loss_bits = bits});
    return true;
  }
  if (event == "rolled_back") {
    const std::optional<int64_t> first = Number(line, "first_step");
    if (!first.has_value()) return false;
    losses_.erase(losses_.lower_bound(*first), losses_.end());
    left_from_ = *first;
    left_before_ = generation;
    return true;
  }
  const std::optional<JournalTime> time = TimeOf(line);
  if (!time.has_value()) return false;
  if (event == "evidence") {
    const std::optional<int64_t> node = Number(line, "node"), percent = Number(line, "number");
    if (Text(line, "kind") != "slow" || !node.has_value() || !percent.has_value() ||
        slow_.size() == kSlowMax)
      return false;
    slow_.push_back({.generation = generation,
                     .node = *node,
                     .rank = Number(line, "rank").value_or(-1),
                     .percent = *percent,
                     .named = *time});
    return true;
  }
  Recovery* open = Open();
  if (event == "failure_detected") {
    // A node that no rank sits on is not missed.
    const auto member = line.find("member");
    if (member != line.end() && member->is_boolean() && !member->get<bool>()) return true;
    const std::string kind = Text(line, "kind");
    // Broken connections are what another failure looks like from afar.
    const bool cause = open != nullptr && open->kind == "network-error" && kind != open->kind &&
                       open->generation == generation && !kind.empty();
    if (open != nullptr && !cause) return true;
    if (open == nullptr) {
      if (recoveries_.size() == kRecoveriesMax) return false;
      recoveries_.push_back({.generation = generation, .detected = *time});
      open = &recoveries_.back();
    }
    open->kind = kind;
    open->noticed = Text(line, "noticed");
    open->node = Number(line, "node").value_or(-1);
    open->rank = Number(line, "rank").value_or(-1);
    open->step = step.value_or(0);
    return true;
  }
  if (event == "generation_taken_over") {
    generation_ = generation;
    return taken_over_ = stepped_ = true;
  }
  if (event == "generation_stopping") {
    if (generation == generation_) stepped_ = false;
    return true;
  }
  if (event == "generation_starting") {
    if (generation < generation_) return false;
    generation_ = generation;
    stepped_ = false;
    if (open == nullptr) step_ = std::min(step_, step.value_or(0));
    if (open == nullptr || generation <= open->generation) return true;
    open->next = generation;
    ++open->generations;
    open->from = Text(line, "from");
    open->resumed = step.value_or(0);
    // Rank 0's node may have told of steps that the coordinator had not heard of.
    open->redone =
        std::max({open->redone, Number(line, "redone").value_or(0), step_ - open->resumed});
    open->formed.reset();
    open->restored.reset();
    return true;
  }
  const bool mine = open != nullptr && generation == open->next;
  if (event == "ranks_made" || event == "ranks_connected") {
    if (mine) open->formed = *time;
    return true;
  }
  if (event == "state_restored") {
    if (mine) open->restored = *time;
    return true;
  }
  if (event != "first_step") return false;
  if (generation == generation_) stepped_ = true;
  if (mine) open->stepped = *time;
  return true;
}

}  // namespace perdure
