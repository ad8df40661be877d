// Answers that were cut short, or that somebody made up, are refused or read as a well-formed part.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <variant>

#include "launch/slurm/scheduler_text.h"
#include "tests/prng.h"
#include "tests/slurm/recorded_command.h"

namespace perdure {
namespace {

using Answer = std::variant<std::vector<JobView>, std::vector<NodeView>, std::vector<PartitionView>,
                            std::vector<QosView>, std::vector<AssociationView>,
                            std::vector<PastJob>, SchedulerConfig, int64_t>;

template <typename T>
absl::StatusOr<Answer> As(absl::StatusOr<T> answer) {
  if (!answer.ok()) return answer.status();
  return Answer(*std::move(answer));
}

// The reader that Scheduler uses for a command's output.
absl::StatusOr<Answer> Read(const std::vector<std::string>& argv, const std::string& text) {
  const auto has = [&](const char* word) {
    return std::find(argv.begin(), argv.end(), word) != argv.end();
  };
  if (argv[0] == "squeue") return As(ParseSqueue(text, kRecordedSeparator));
  if (argv[0] == "sinfo") return As(ParseSinfo(text, kRecordedSeparator));
  if (argv[0] == "sacct") return As(ParseHistory(text));
  if (argv[0] == "sacctmgr") return has("user") ? As(ParseAssociations(text)) : As(ParseQos(text));
  if (argv[0] == "sbatch") return As(ParseSubmitted(text));
  if (has("config")) return As(ParseConfig(text));
  if (has("partition")) return As(ParsePartitions(text));
  // An array's records are read with the name that squeue says.
  if (argv.back() == "4") return As(ParseScontrolJobs(text, "arr"));
  return As(ParseScontrolJobs(text, std::nullopt));
}

// Whether `part` holds the first records of `whole`, or all.
bool IsPart(const Answer& part, const Answer& whole) {
  if (part.index() != whole.index()) return false;
  return std::visit(
      [&](const auto& records) {
        using T = std::decay_t<decltype(records)>;
        const T& all = std::get<T>(whole);
        if constexpr (std::is_same_v<T, SchedulerConfig> || std::is_same_v<T, int64_t>)
          return records == all;
        else
          return records.size() <= all.size() &&
                 std::equal(records.begin(), records.end(), all.begin());
      },
      part);
}

std::vector<RecordedCommand> ReadableRecords() {
  std::vector<RecordedCommand> records;
  for (const std::string& name : RecordNames("22.05")) {
    RecordedCommand record = ReadRecord(name);
    // Two fields only: Scheduler reads those by itself.
    if (record.result.output.empty() || name.ends_with("-asked")) continue;
    records.push_back(std::move(record));
  }
  return records;
}

bool IsRefusal(const absl::Status& status) {
  return absl::IsInternal(status) || absl::IsFailedPrecondition(status);
}

TEST(TornText, CutAnywhere) {
  const std::vector<RecordedCommand> records = ReadableRecords();
  ASSERT_GT(records.size(), 20U);
  for (const RecordedCommand& record : records) {
    const std::string& text = record.result.output;
    const absl::StatusOr<Answer> whole = Read(record.argv, text);
    for (size_t length = 0; length < text.size(); ++length) {
      const absl::StatusOr<Answer> part = Read(record.argv, text.substr(0, length));
      if (part.ok())
        EXPECT_TRUE(whole.ok() && IsPart(*part, *whole)) << record.argv[0] << " cut at " << length;
      else
        EXPECT_TRUE(IsRefusal(part.status())) << part.status();
    }
  }
}

TEST(TornText, ChangedAnywhere) {
  Prng random(11);
  for (const RecordedCommand& record : ReadableRecords()) {
    for (int round = 0; round < 3000; ++round) {
      std::string text = record.result.output;
      const uint64_t changes = 1 + random.Below(4);
      for (uint64_t i = 0; i < changes; ++i) {
        const size_t at = random.Below(text.size());
        switch (random.Below(4)) {
          case 0:
            text[at] = static_cast<char>(random.Below(256));
            break;
          case 1:
            text.erase(at, 1 + random.Below(20));
            break;
          case 2:
            text.insert(at, text.substr(random.Below(text.size()), random.Below(40)));
            break;
          default:
            text.insert(at, 1, "=[],|-:\n 9K"[random.Below(11)]);
        }
        if (text.empty()) text = "x";
      }
      const absl::StatusOr<Answer> answer = Read(record.argv, text);
      if (!answer.ok()) EXPECT_TRUE(IsRefusal(answer.status())) << answer.status();
    }
  }
}

TEST(TornText, Rubbish) {
  Prng random(12);
  const std::vector<std::vector<std::string>> commands = {{"squeue"},
                                                          {"sinfo"},
                                                          {"sacct"},
                                                          {"sacctmgr"},
                                                          {"sacctmgr", "show", "user"},
                                                          {"sbatch"},
                                                          {"scontrol", "show", "config"},
                                                          {"scontrol", "show", "partition"},
                                                          {"scontrol", "show", "job"}};
  for (const std::vector<std::string>& argv : commands) {
    for (const char* text :
         {"=", "\n", "JobId=1\n", "JobId=1 JobName=\n", "JobId=1 JobName=x UserId=a(1) Command=\n",
          "JobName=x UserId=\n", "JobId=99999999999999999999 JobName=x UserId= Command=\n",
          "|||||||||\n", "PartitionName=\n", "<~|~>\n", "KillWait = \n", "\xff\xfe\n"}) {
      const absl::StatusOr<Answer> answer = Read(argv, text);
      if (!answer.ok()) EXPECT_TRUE(IsRefusal(answer.status())) << answer.status();
    }
    for (int round = 0; round < 2000; ++round) {
      std::string text(random.Below(200), '\0');
      for (char& c : text) c = static_cast<char>(random.Below(256));
      const absl::StatusOr<Answer> answer = Read(argv, text + "\n");
      if (!answer.ok()) EXPECT_TRUE(IsRefusal(answer.status())) << answer.status();
    }
  }
}

}  // namespace
}  // namespace perdure
