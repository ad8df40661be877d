// What one agent knows of a job's nodes, put down in the book of the run under the nodes' names.
// The agent that coordinates tells what the coordinator finds; each tells what the devices of its
// own node say.
//
// What a node is blamed for is put down once a generation. A connection that broke says little
// by itself, because a node that dies breaks those of all others: it counts only where the log
// names nothing better as what ended the generation.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "absl/time/time.h"
#include "launch/node_book.h"
#include "runtime/control/evidence.h"
#include "runtime/control/ids.h"
#include "runtime/control/no_progress.h"

namespace perdure {

class JobEvidence {
 public:
  struct Options {
    std::string run_directory;
    uint64_t job = 0;  // JobStart.
    NodeId node = 0;   // Whose agent this is.
    // Of the job's nodes, by number. Empty: nothing is put down, as for `perdure run`, whose nodes
    // are one machine.
    std::vector<std::string> names;
  };
  // `warn` is called once, when something could not be written.
  JobEvidence(Options options, std::function<void(const std::string& line)> warn);

  // The coordinator holds that against a node. Times are of the wall clock.
  void Hear(absl::Time now, Generation generation, NodeId node, EvidenceKind kind, int64_t number);
  // A generation has begun on `members`, after those that failed: a coordinator that is new hears
  // of its predecessor's node in this way alone.
  void Form(absl::Time now, Generation generation, const std::vector<NodeId>& members,
            const std::vector<FailedGeneration>& failures);
  // What a device of this node has said, as JobHealth gets it.
  void HearDevice(absl::Time now, Generation generation, const nlohmann::json& evidence);
  // The job ends, told by who coordinates: those that the book knows, and that have worked since,
  // are the better for it.
  void End(absl::Time now);

 private:
  void Put(absl::Time now, Generation generation, NodeId node, EvidenceKind kind, int64_t number,
           const std::string& detail);
  void Write(const EvidenceEntry& entry);

  const Options options_;
  const std::function<void(const std::string& line)> warn_;
  const NodeBook book_;
  std::set<std::tuple<NodeId, Generation, EvidenceKind, int64_t>> told_;
  std::map<Generation, std::set<NodeId>> broken_;  // Whose connections broke, until it is judged.
  std::map<NodeId, absl::Time> working_;           // Members, and since when without trouble.
  bool warned_ = false;
};

}  // namespace perdure
