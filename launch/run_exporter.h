// What Prometheus can find and fetch of a run, by the agent that coordinates: an HTTP endpoint
// (/metrics, /sd, /healthz), the file by which a Prometheus discovers it (RUN/targets), and a file
// for node_exporter's textfile collector. It moves with the role. Nothing is decided by it, and
// what it cannot do is said once.
//
// Its loop's thread calls everything; the files are read on a thread of its own.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "monitoring/http_endpoint.h"
#include "monitoring/run_metrics.h"
#include "runtime/agent/worker.h"
#include "runtime/train/run_config.h"
#include "runtime/wire/event_loop.h"

namespace perdure {

struct RunExporterOptions {
  std::string run_directory;
  RunConfig config;
  std::string address;                                // Where agents reach each other, numeric.
  std::function<void(const std::string& line)> warn;  // What cannot be done, once each.
};

class RunExporter {
 public:
  // How often what is served is made anew, at most.
  static constexpr absl::Duration kEvery = absl::Seconds(2);

  // `loop` outlives it.
  static absl::StatusOr<std::unique_ptr<RunExporter>> New(EventLoop* loop,
                                                          RunExporterOptions options);
  ~RunExporter();

  // By the agent that leads, several times a second; the first call begins to serve.
  void Update(LiveFacts live);
  // This agent leads no more: it serves no more. The target is the next one's to replace.
  void Cease();
  // The job is over. Where this agent was the last to serve, it tells the end to the textfile
  // collector, and removes the target. Waits.
  void End(bool complete);

  // 0: nothing is served.
  int port() const { return endpoint_ == nullptr ? 0 : endpoint_->port(); }

 private:
  RunExporter(EventLoop* loop, RunExporterOptions options);
  absl::Status Serve();
  void Refresh(LiveFacts live);
  void Warn(const absl::Status& status);

  EventLoop* const loop_;
  const RunExporterOptions options_;
  std::unique_ptr<Worker> worker_;
  std::unique_ptr<RunHistory> history_;  // The worker's thread's, while it refreshes.
  std::unique_ptr<HttpEndpoint> endpoint_;
  bool serves_ = false, refreshing_ = false, warned_ = false;
  std::string targets_;  // As it was written last; empty: it never was.
  LiveFacts live_;       // As it was told last.
  absl::Time refreshed_ = absl::InfinitePast();
  double took_ = 0;
};

// RUN/targets/perdure.json, by which file_sd finds the run.
std::string TargetsPath(const std::string& run_directory);

}  // namespace perdure
