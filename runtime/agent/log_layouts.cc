#include "runtime/agent/log_layouts.h"

#include <utility>

#include "runtime/base/status.h"

namespace perdure {
namespace {

constexpr absl::Duration kPause = absl::Milliseconds(100);

struct Question {
  EventLoop* loop = nullptr;
  ControlLog* log = nullptr;
  std::vector<Generation> generations;
  std::function<void(absl::StatusOr<std::vector<PlacedLayout>>)> then;
  absl::Time until;
};

// Empty: they are not all there.
std::vector<PlacedLayout> Find(const std::vector<LogEntry>& entries,
                               const std::vector<Generation>& generations) {
  std::vector<PlacedLayout> layouts;
  for (const Generation generation : generations)
    for (const LogEntry& entry : entries)
      if (entry.kind == EntryKind::kStart && entry.generation == generation) {
        layouts.push_back(*entry.layout);
        break;
      }
  if (layouts.size() < generations.size()) layouts.clear();
  return layouts;
}

void Ask(Question question) {
  ControlLog* const log = question.log;
  log->Read(0, [question = std::move(question)](const ControlLog::Entries& reading) mutable {
    if (absl::IsDataLoss(reading.status())) {
      question.then(reading.status());
      return;
    }
    std::vector<PlacedLayout> layouts;
    if (reading.ok()) layouts = Find(reading->entries, question.generations);
    if (!layouts.empty()) {
      question.then(std::move(layouts));
      return;
    }
    if (MonotonicNow() > question.until) {
      question.then(DeadlineExceeded(
          "the START of generation {} cannot be found; the last reading: {}",
          question.generations.front(), reading.ok() ? "fine" : Message(reading.status())));
      return;
    }
    EventLoop* const loop = question.loop;
    loop->AddTimer(MonotonicNow() + kPause,
                   [question = std::move(question)]() mutable { Ask(std::move(question)); });
  });
}

}  // namespace

void ReadLayouts(EventLoop* loop, ControlLog* log, std::vector<Generation> generations,
                 std::function<void(absl::StatusOr<std::vector<PlacedLayout>>)> then,
                 absl::Duration within) {
  Ask({.loop = loop,
       .log = log,
       .generations = std::move(generations),
       .then = std::move(then),
       .until = MonotonicNow() + within});
}

}  // namespace perdure
