#include "monitoring/loss_csv.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <bit>
#include <cmath>
#include <csignal>
#include <filesystem>
#include <limits>

#include "runtime/base/files.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

// What readers of loss.csv rely on; further columns may follow.
constexpr char kColumns[] =
    "step,samples,tokens,loss,loss_bits,grad_norm,learning_rate,batch,context,step_seconds,"
    "tokens_per_second,generation,ranks";

std::vector<std::string> Split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  size_t begin = 0;
  for (size_t end; (end = text.find(separator, begin)) != std::string::npos; begin = end + 1)
    parts.push_back(text.substr(begin, end - begin));
  parts.push_back(text.substr(begin));
  return parts;
}

LossRow Row(int64_t step) {
  return {.step = step,
          .samples = 4 * step,
          .tokens = 64 * step,
          .loss = 1.0 / static_cast<double>(step + 1),
          .grad_norm = 0.5,
          .learning_rate = 3e-4,
          .batch = 4,
          .context = 16,
          .step_seconds = 0.25,
          .tokens_per_second = 256,
          .generation = 2,
          .ranks = 8,
          .phase = "pretrain"};
}

class LossCsvTest : public testing::Test {
 protected:
  LossCsvTest() : directory_(fmt::format("{}/loss_csv_test.{}", testing::TempDir(), ::getpid())) {
    std::filesystem::create_directories(directory_);
  }
  ~LossCsvTest() override { std::filesystem::remove_all(directory_); }

  // Opens at `resume_step` and appends steps (resume_step, last].
  void Train(int64_t resume_step, int64_t last) {
    const auto csv = LossCsv::Open(path_, resume_step);
    ASSERT_TRUE(csv.ok()) << csv.status();
    for (int64_t step = resume_step + 1; step <= last; ++step)
      ASSERT_TRUE((*csv)->Append(Row(step)).ok());
  }
  // Lines of the file; the last one must end.
  std::vector<std::string> Lines() {
    std::vector<std::string> lines = Split(ReadFile(path_).value(), '\n');
    EXPECT_EQ(lines.back(), "");
    lines.pop_back();
    return lines;
  }
  std::vector<std::string> Steps() {
    std::vector<std::string> steps;
    for (const std::string& line : Lines()) steps.push_back(Split(line, ',').front());
    return steps;
  }

  std::string directory_;
  std::string path_ = directory_ + "/loss.csv";
};

TEST_F(LossCsvTest, HasTheColumnsThatReadersKnow) {
  Train(0, 1);
  const std::vector<std::string> lines = Lines();
  ASSERT_EQ(lines.size(), 2);
  EXPECT_THAT(lines[0], StartsWith(kColumns));
  EXPECT_EQ(Split(lines[0], ',').size(), Split(lines[1], ',').size());
  EXPECT_THAT(lines[1], StartsWith("1,4,64,0.5,3fe0000000000000,0.5,0.0003,4,16,0.25"));
  const std::vector<std::string> columns = Split(lines[0], ','), row = Split(lines[1], ',');
  for (size_t c = 0; c < columns.size(); ++c) {
    if (columns[c] == "tokens_per_second") EXPECT_EQ(std::stod(row[c]), 256);
    if (columns[c] == "generation") EXPECT_EQ(row[c], "2");
    if (columns[c] == "ranks") EXPECT_EQ(row[c], "8");
    if (columns[c] == "phase") EXPECT_EQ(row[c], "pretrain");
  }
}

TEST_F(LossCsvTest, AFreshFileHasItsHeaderAtOnce) {
  ASSERT_TRUE(LossCsv::Open(path_, 0).ok());
  ASSERT_EQ(Lines().size(), 1);
}

TEST_F(LossCsvTest, LossBitsAreExact) {
  const double values[] = {0.0,
                           -0.0,
                           std::numeric_limits<double>::denorm_min(),
                           -3 * std::numeric_limits<double>::denorm_min(),
                           0.1 + 0.2,
                           std::numeric_limits<double>::max(),
                           std::numeric_limits<double>::infinity(),
                           std::numeric_limits<double>::quiet_NaN()};
  {
    const auto csv = LossCsv::Open(path_, 0);
    ASSERT_TRUE(csv.ok()) << csv.status();
    int64_t step = 0;
    for (const double value : values) {
      LossRow row = Row(++step);
      row.loss = value;
      ASSERT_TRUE((*csv)->Append(row).ok());
    }
  }
  const std::vector<std::string> lines = Lines();
  ASSERT_EQ(lines.size(), std::size(values) + 1);
  for (size_t i = 0; i < std::size(values); ++i) {
    const std::vector<std::string> row = Split(lines[i + 1], ',');
    ASSERT_EQ(row[4].size(), 16);
    const auto bits = std::bit_cast<uint64_t>(values[i]);
    EXPECT_EQ(std::stoull(row[4], nullptr, 16), bits) << lines[i + 1];
    // The decimal digits come back exactly too.
    char* end = nullptr;
    const double parsed = std::strtod(row[3].c_str(), &end);
    EXPECT_EQ(*end, '\0');
    if (!std::isnan(values[i])) EXPECT_EQ(std::bit_cast<uint64_t>(parsed), bits) << row[3];
  }
  EXPECT_THAT(lines[2], HasSubstr(",-0,8000000000000000,"));
}

TEST_F(LossCsvTest, StepsThatWillBeTakenAgainAreDropped) {
  Train(0, 5);
  Train(3, 4);
  EXPECT_EQ(Steps(), (std::vector<std::string>{"step", "1", "2", "3", "4"}));
  Train(0, 1);
  EXPECT_EQ(Steps(), (std::vector<std::string>{"step", "1"}));
}

TEST_F(LossCsvTest, ResumingWhereItEndsChangesNothing) {
  Train(0, 3);
  const std::string before = ReadFile(path_).value();
  ASSERT_TRUE(LossCsv::Open(path_, 3).ok());
  EXPECT_EQ(ReadFile(path_).value(), before);
}

// Wherever a crash tore the last row, all that were whole stay, and the step is not there twice.
TEST_F(LossCsvTest, ATornLastRowIsDropped) {
  Train(0, 3);
  const std::string whole = ReadFile(path_).value();
  const size_t last = whole.rfind('\n', whole.size() - 2) + 1;
  for (size_t cut = last; cut < whole.size(); ++cut) {
    ASSERT_TRUE(ReplaceFile(path_, whole.substr(0, cut)).ok());
    Train(2, 3);
    EXPECT_EQ(ReadFile(path_).value(), whole) << "torn at " << cut;
  }
  ASSERT_TRUE(ReplaceFile(path_, whole.substr(0, whole.size() - 1)).ok());
  Train(3, 3);
  EXPECT_EQ(Steps(), (std::vector<std::string>{"step", "1", "2"}));
}

TEST_F(LossCsvTest, LossBitsFromAStepOn) {
  Train(0, 9);
  const auto bits = ReadLossBits(path_, 7);
  ASSERT_TRUE(bits.ok());
  EXPECT_EQ(bits->size(), 3u);
  EXPECT_EQ(bits->begin()->first, 7);
  EXPECT_EQ(bits->at(9), ReadLossBits(path_)->at(9));
  EXPECT_TRUE(ReadLossBits(path_, 10)->empty());
}

TEST_F(LossCsvTest, RowsFromAStepOn) {
  EXPECT_TRUE(absl::IsNotFound(ReadLossRows(path_, 0).status()));
  Train(0, 9);
  const auto rows = ReadLossRows(path_, 8);
  ASSERT_TRUE(rows.ok()) << rows.status();
  ASSERT_EQ(rows->size(), 2u);
  EXPECT_EQ(rows->front().step, 8);
  EXPECT_EQ(rows->back().phase, Row(9).phase);
  EXPECT_EQ(ReadLossRows(path_, -3)->size(), 9u);
}

TEST_F(LossCsvTest, StepSecondsAreOfAllSteps) {
  EXPECT_TRUE(absl::IsNotFound(ReadStepSeconds(path_ + ".absent").status()));
  Train(0, 9);
  const auto seconds = ReadStepSeconds(path_);
  ASSERT_TRUE(seconds.ok()) << seconds.status();
  double sum = 0;
  for (int64_t step = 1; step <= 9; ++step) sum += Row(step).step_seconds;
  EXPECT_NEAR(*seconds, sum, 1e-5);
  Train(5, 9);  // Again, from the step after 5 on.
  EXPECT_NEAR(ReadStepSeconds(path_).value_or(0), sum, 1e-5);
}

// More rows than are read at first, and cuts on all sides of where that begins.
TEST_F(LossCsvTest, ALongRunIsCutAnywhere) {
  constexpr int64_t kSteps = 6000;
  Train(0, kSteps);
  const std::string whole = ReadFile(path_).value();
  ASSERT_GT(whole.size(), size_t{400} << 10);
  for (const int64_t step :
       {kSteps, kSteps - 1, kSteps - 700, kSteps / 2, int64_t{1}, int64_t{0}}) {
    ASSERT_TRUE(ReplaceFile(path_, whole).ok());
    Train(step, step);
    const std::vector<std::string> steps = Steps();
    ASSERT_EQ(steps.size(), static_cast<size_t>(step) + 1);
    EXPECT_TRUE(whole.starts_with(ReadFile(path_).value()));
  }
}

TEST_F(LossCsvTest, TheLastRowIsReadAsItWasWritten) {
  EXPECT_EQ(LastLossRow(path_).status().code(), absl::StatusCode::kNotFound);
  Train(0, 0);
  ASSERT_TRUE(LastLossRow(path_).ok());
  EXPECT_FALSE(LastLossRow(path_)->has_value());
  Train(0, 3);
  std::string whole = ReadFile(path_).value();
  for (const char* torn :
       {"", "4,16", "4,16,256,0.5,3fe0000000000000,0.5,0.0003,4,16,0.25,256,2,8"}) {
    ASSERT_TRUE(ReplaceFile(path_, whole + torn).ok());
    const auto last = LastLossRow(path_);
    ASSERT_TRUE(last.ok() && last->has_value()) << last.status();
    const LossRow& row = **last;
    const LossRow wrote = Row(3);
    EXPECT_EQ(row.step, 3);
    EXPECT_EQ(row.samples, wrote.samples);
    EXPECT_EQ(row.tokens, wrote.tokens);
    EXPECT_EQ(std::bit_cast<uint64_t>(row.loss), std::bit_cast<uint64_t>(wrote.loss));
    EXPECT_EQ(row.grad_norm, wrote.grad_norm);
    EXPECT_EQ(row.learning_rate, wrote.learning_rate);
    EXPECT_EQ(row.batch, wrote.batch);
    EXPECT_EQ(row.context, wrote.context);
    EXPECT_EQ(row.step_seconds, wrote.step_seconds);
    EXPECT_EQ(row.tokens_per_second, wrote.tokens_per_second);
    EXPECT_EQ(row.generation, wrote.generation);
    EXPECT_EQ(row.ranks, wrote.ranks);
    EXPECT_EQ(row.phase, wrote.phase);
  }
  for (const char* bad :
       {"4,16\n", "4,16,256,x,3fe0000000000000,0.5,0.0003,4,16,0.25,256,2,8,p,q\n",
        "4,16,256,0.5,3fe000000000000g,0.5,0.0003,4,16,0.25,256,2,8,p\n"}) {
    ASSERT_TRUE(ReplaceFile(path_, whole + bad).ok());
    EXPECT_EQ(LastLossRow(path_).status().code(), absl::StatusCode::kDataLoss) << bad;
  }
}

TEST_F(LossCsvTest, ForeignFilesAreRefusedAndLeftAlone) {
  const std::string header = std::string(kColumns) + ",phase\n";
  Train(0, 0);
  ASSERT_EQ(ReadFile(path_).value(), header);
  for (const std::string& content :
       {std::string(), std::string("step,loss\n1,2\n"), header.substr(0, 40), header + "one,2,3\n",
        header + "\n", header + "1;2;3\n", header + "1x,2\n",
        header + "99999999999999999999,2\n"}) {
    ASSERT_TRUE(ReplaceFile(path_, content).ok());
    const absl::Status status = LossCsv::Open(path_, 5).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << content;
    EXPECT_THAT(Message(status), HasSubstr(path_));
    EXPECT_THAT(Message(status), HasSubstr("move"));
    EXPECT_EQ(ReadFile(path_).value(), content);
  }
}

TEST_F(LossCsvTest, ErrorsNameThePath) {
  path_ = directory_ + "/missing/loss.csv";
  EXPECT_THAT(Message(LossCsv::Open(path_, 0).status()), HasSubstr(path_));
  path_ = directory_;
  EXPECT_THAT(Message(LossCsv::Open(path_, 0).status()), HasSubstr(path_));
}

// A file that may not grow stands for a full disk.
TEST_F(LossCsvTest, AFullDiskIsAnError) {
  const auto csv = LossCsv::Open(path_, 0);
  ASSERT_TRUE(csv.ok()) << csv.status();
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  const rlimit limited{.rlim_cur = std::filesystem::file_size(path_) + 10,
                       .rlim_max = before.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &limited), 0);
  const absl::Status torn = (*csv)->Append(Row(1)), refused = (*csv)->Append(Row(1));
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &before), 0);
  std::signal(SIGXFSZ, handler);
  EXPECT_FALSE(torn.ok());
  EXPECT_FALSE(refused.ok());
  EXPECT_THAT(Message(torn), HasSubstr(path_));
  Train(0, 1);
  EXPECT_EQ(Steps(), (std::vector<std::string>{"step", "1"}));
}

}  // namespace
}  // namespace perdure
