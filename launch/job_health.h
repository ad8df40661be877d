// What the ranks of a job say about their devices: kept for the failure message of whoever dies,
// written to the journal, and compared. Nothing here decides whether training goes on.
#pragma once

#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <string>

namespace perdure {

class JobHealth {
 public:
  struct Hooks {
    std::function<void(const std::string& event, const nlohmann::json& fields)> event;
    std::function<void(const std::string& line)> warn;
  };
  JobHealth(int ranks, Hooks hooks) : ranks_(ranks), hooks_(std::move(hooks)) {}

  // A frame "health"; with the last rank's come the warnings about slow devices.
  void OnHealth(int rank, int node, const nlohmann::json& frame);
  // A frame "evidence".
  void OnEvidence(int rank, int node, const nlohmann::json& frame);
  // The last evidence about a rank's device, as a sentence to append; else empty.
  std::string EvidenceOf(int rank) const;

 private:
  struct Member {
    int node = 0;
    std::string device;
    nlohmann::json rates;
  };
  void WarnOfFacts(int rank, const nlohmann::json& frame, const nlohmann::json& facts) const;
  void Compare() const;

  const int ranks_;
  const Hooks hooks_;
  std::map<int, Member> members_;
  std::map<int, std::string> evidence_;
  bool told_no_nvml_ = false;
};

}  // namespace perdure
