#include "monitoring/run_history.h"

#include <algorithm>
#include <iterator>
#include <nlohmann/json.hpp>

#include "runtime/base/status.h"

namespace perdure {
namespace {

using Json = nlohmann::json;

// Parts of `first_step` in the journal.
constexpr const char* kParts[] = {"before",     "stop", "choose", "spawn",
                                  "rendezvous", "load", "wait",   "first"};

double NumberOf(const Json& event, const char* key) {
  const auto found = event.find(key);
  return found != event.end() && found->is_number() ? found->get<double>() : 0;
}

int64_t IntegerOf(const Json& event, const char* key) {
  const auto found = event.find(key);
  return found != event.end() && found->is_number_integer() ? found->get<int64_t>() : 0;
}

std::string TextOf(const Json& event, const char* key) {
  const auto found = event.find(key);
  return found != event.end() && found->is_string() ? found->get<std::string>() : "";
}

double Seconds(absl::Duration duration) { return absl::ToDoubleSeconds(duration); }

}  // namespace

RunHistory::RunHistory(const std::string& run_directory)
    : rows_file_(run_directory + "/metrics/loss.csv"),
      events_file_(run_directory + "/journal.jsonl") {
  ForgetRows();
  ForgetEvents();
}

void RunHistory::ForgetRows() {
  last_.reset();
  productive_ = 0;
}

void RunHistory::ForgetEvents() {
  story_ = {};
  steps_taken_ = steps_redone_ = newest_step_ = rollbacks_ = 0;
  taken_ = waited_ = recovering_ = stalled_ = 0;
  durations_.assign(std::size(kStepBounds) + 1, 0);
  recovery_.clear();
  for (const char* part : kParts) recovery_[part] = 0;
  checkpoint_.reset();
  committed_ = failed_ = 0;
  jobs_.clear();
  heard_ = absl::InfinitePast();
}

absl::Status RunHistory::Refresh() {
  // Events first: a step is told there before its row is looked for, so that redone time is never
  // below zero.
  absl::Status rows =
      rows_file_.Read([this] { ForgetRows(); }, [this](std::string_view line) { TakeRow(line); });
  absl::Status events = events_file_.Read([this] { ForgetEvents(); },
                                          [this](std::string_view line) { TakeEvent(line); });
  if (absl::IsNotFound(rows)) rows = absl::OkStatus();
  if (!absl::IsNotFound(events)) rows.Update(events);
  return rows;
}

void RunHistory::TakeRow(std::string_view line) {
  absl::StatusOr<LossRow> row = ParseLossRow(line);
  if (!row.ok()) return;  // The head, or a torn one.
  productive_ += row->step_seconds;
  last_ = *std::move(row);
}

void RunHistory::TakeEvent(std::string_view line) {
  if (line.size() > JournalStory::kLineBytesMax) return;
  const Json event = Json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (!event.is_object()) return;
  const std::string kind = TextOf(event, "event");
  // It remembers each step that it is told, which a recovery alone needs.
  const bool recovers =
      !story_.recoveries().empty() && !story_.recoveries().back().stepped.has_value();
  if (recovers || (kind != "step" && kind != "step_told_again")) story_.Read(line);
  absl::Time time;
  std::string error;
  if (!absl::ParseTime(absl::RFC3339_full, TextOf(event, "time"), &time, &error)) return;
  // A job is there from the first thing that is heard of it until its end.
  const bool of_a_job = kind != "drill" && kind != "drill_over";
  if (of_a_job && (jobs_.empty() || !jobs_.back().outcome.empty()) && kind != "end") BeginJob(time);
  if (kind == "step") TakeStep(event);
  if (kind == "first_step") TakeFirstStep(event, time);
  if (kind == "rolled_back") ++rollbacks_;
  if (kind == "checkpoint") {
    const double stall = NumberOf(event, "wait_seconds") + NumberOf(event, "freeze_seconds");
    checkpoint_ = {
        .step = IntegerOf(event, "step"),
        .time = time,
        .bytes = IntegerOf(event, "bytes"),
        .seconds = stall + NumberOf(event, "copy_seconds") + NumberOf(event, "write_seconds"),
        .stall_seconds = stall};
    ++committed_;
    stalled_ += stall;
  }
  if (kind == "checkpoint_failed") ++failed_;
  if (kind == "end" && !jobs_.empty() && jobs_.back().outcome.empty()) {
    jobs_.back().ended = time;
    jobs_.back().outcome = TextOf(event, "state");
    jobs_.back().last_step = IntegerOf(event, "step");
  }
  heard_ = time;
}

// The one before may have been lost without a word: then it was there as long as it was heard.
void RunHistory::BeginJob(absl::Time began) {
  if (!jobs_.empty() && jobs_.back().outcome.empty()) {
    jobs_.back().outcome = "lost";
    jobs_.back().ended = std::max(heard_, jobs_.back().began);
    jobs_.back().last_step = newest_step_;
  }
  jobs_.push_back({.began = began,
                   .ended = absl::InfiniteFuture(),
                   .outcome = {},
                   .first_step = last_.has_value() ? last_->step : 0});
}

void RunHistory::TakeStep(const Json& event) {
  const int64_t step = IntegerOf(event, "step");
  const double seconds = NumberOf(event, "seconds");
  ++steps_taken_;
  if (step <= newest_step_) ++steps_redone_;
  newest_step_ = std::max(newest_step_, step);
  taken_ += seconds;
  waited_ += NumberOf(event, "wait_seconds");
  const auto bound = std::lower_bound(std::begin(kStepBounds), std::end(kStepBounds), seconds);
  ++durations_[static_cast<size_t>(bound - std::begin(kStepBounds))];
}

void RunHistory::TakeFirstStep(const Json& event, absl::Time time) {
  const double seconds = NumberOf(event, "seconds"), first = NumberOf(event, "first");
  if (TextOf(event, "why") == "start") {
    const absl::Time began = time - absl::Seconds(seconds);
    // Told by a coordinator of a job whose end nobody heard.
    if (jobs_.back().starting_seconds > 0) BeginJob(began);
    jobs_.back().began = std::min(jobs_.back().began, began);
    jobs_.back().starting_seconds = std::max(0.0, seconds - first);
    return;
  }
  recovering_ += std::max(0.0, seconds - first);
  for (const char* part : kParts) recovery_[part] += NumberOf(event, part);
}

// What the newest one was may still turn out to have been something else, until the next generation
// begins: what was counted is not taken back.
std::map<std::string, int64_t> RunHistory::failures() const {
  std::map<std::string, int64_t> failures;
  const std::vector<Recovery>& all = story_.recoveries();
  for (size_t i = 0; i < all.size(); ++i) {
    const bool open = i + 1 == all.size() && all[i].next == 0 && !story_.ended();
    if (!open) ++failures[all[i].kind.empty() ? "unknown" : all[i].kind];
  }
  return failures;
}

std::map<std::string, int64_t> RunHistory::recoveries() const {
  std::map<std::string, int64_t> recoveries;
  for (const Recovery& recovery : story_.recoveries())
    if (recovery.stepped.has_value()) ++recoveries[recovery.from];
  return recoveries;
}

RunHistory::Goodput RunHistory::goodput(absl::Time now) const {
  Goodput goodput{.productive = productive_,
                  .redone = std::max(0.0, taken_ - productive_),
                  .recovering = recovering_,
                  .saving = stalled_};
  double held = 0;
  for (size_t i = 0; i < jobs_.size(); ++i) {
    const Job& job = jobs_[i];
    held += Seconds(std::max(std::min(job.ended, now), job.began) - job.began);
    goodput.starting += job.starting_seconds;
    if (i > 0)
      goodput.queued += Seconds(std::max(job.began, jobs_[i - 1].ended) - jobs_[i - 1].ended);
  }
  const double known = goodput.held();
  goodput.other = std::max(0.0, held - known);
  return goodput;
}

}  // namespace perdure
