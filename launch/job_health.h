// What the ranks of a node say about their devices: kept for the failure message of whoever dies,
// written to the journal, and compared with what others of the job said. Nothing here decides
// whether training goes on.
#pragma once

#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace perdure {

class JobHealth {
 public:
  struct Hooks {
    std::function<void(const std::string& event, const nlohmann::json& fields)> event;
    std::function<void(const std::string& line)> warn;
  };
  JobHealth(int node, Hooks hooks) : node_(node), hooks_(std::move(hooks)) {}

  // What the process of a slot says about its device when it has opened it, as it is rank `rank`.
  void OnHealth(int local_rank, int rank, const nlohmann::json& report);
  // What comes in about it later.
  void OnEvidence(int local_rank, int rank, const nlohmann::json& evidence);
  // The last evidence about a slot's device, as a sentence to append; else empty.
  std::string EvidenceOf(int local_rank) const;
  // [{local_rank, device, rates}], for Compare of whoever knows all nodes'.
  nlohmann::json Devices() const;

  struct Member {
    int rank = 0;
    int node = 0;
    std::string device;
    nlohmann::json rates;  // By name; none: it was not tried.
  };
  // A warning for each rate of a device that is far below the others'.
  static std::vector<std::string> Compare(const std::vector<Member>& members);

 private:
  struct Device {
    std::string name;
    nlohmann::json rates;
    std::string evidence;
  };
  void WarnOfFacts(int rank, const nlohmann::json& report, const nlohmann::json& facts) const;

  const int node_;
  const Hooks hooks_;
  std::map<int, Device> devices_;  // By slot.
  bool told_no_nvml_ = false;
};

}  // namespace perdure
