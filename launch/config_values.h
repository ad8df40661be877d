// How each kind of value is read from TOML and printed as TOML. Only for config_fields.cc.
//
// Read...: "" and the value set, or what is wrong with the node. Print...: TOML that reads back to
// the same value.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/time/time.h"
#include "launch/config_fields.h"

namespace perdure {

std::string ReadValue(const toml::node& node, int64_t& value);
std::string ReadValue(const toml::node& node, uint64_t& value);
std::string ReadValue(const toml::node& node, double& value);
std::string ReadValue(const toml::node& node, bool& value);
std::string ReadValue(const toml::node& node, std::string& value);
// "20:00:00", "1-00:00:00", "1h30min", "90s", or an integer of seconds.
std::string ReadValue(const toml::node& node, absl::Duration& value);
std::string ReadValue(const toml::node& node, std::vector<SourceConfig>& value);
std::string ReadValue(const toml::node& node, std::vector<int64_t>& value);
std::string ReadValue(const toml::node& node, std::vector<std::string>& value);

std::string PrintValue(int64_t value);
std::string PrintValue(uint64_t value);
std::string PrintValue(double value);
std::string PrintValue(bool value);
std::string PrintValue(const std::string& value);
std::string PrintValue(absl::Duration value);
std::string PrintValue(const std::vector<SourceConfig>& value);
std::string PrintValue(const std::vector<int64_t>& value);
std::string PrintValue(const std::vector<std::string>& value);

}  // namespace perdure
