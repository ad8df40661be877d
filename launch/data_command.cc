#include "launch/data_command.h"

#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "runtime/base/status.h"
#include "runtime/data/build.h"
#include "runtime/data/indexed_dataset.h"
#include "runtime/data/tokenizer.h"
#include "runtime/data/utf8.h"

namespace perdure {
namespace {

using Json = nlohmann::ordered_json;
using Clock = std::chrono::steady_clock;

int Report(std::string_view command, const absl::Status& status) {
  if (status.ok()) return 0;
  fmt::print(stderr, "perdure data {}: {}\n", command, Message(status));
  switch (status.code()) {
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kNotFound:
    case absl::StatusCode::kAlreadyExists:
    case absl::StatusCode::kDataLoss:
      return 2;
    default:
      return 1;
  }
}

void Print(const Json& json) {
  fmt::print("{}\n", json.dump(2, ' ', /*ensure_ascii=*/false, Json::error_handler_t::replace));
}

std::string Megabytes(int64_t bytes) {
  return fmt::format("{:.2f} MB", static_cast<double>(bytes) / 1e6);
}

double PerSecond(int64_t count, double seconds) {
  return static_cast<double>(count) / std::max(seconds, 1e-9);
}

volatile std::sig_atomic_t interrupted = 0;

// While it lives, the first SIGINT or SIGTERM asks the build to end and clean up; a second one
// kills as usual.
class InterruptGuard {
 public:
  InterruptGuard() {
    interrupted = 0;
    struct sigaction action {};
    action.sa_handler = [](int) { interrupted = 1; };
    action.sa_flags = static_cast<int>(SA_RESETHAND);
    for (size_t i = 0; i < kSignals.size(); ++i) ::sigaction(kSignals[i], &action, &before_[i]);
  }
  ~InterruptGuard() {
    for (size_t i = 0; i < kSignals.size(); ++i) ::sigaction(kSignals[i], &before_[i], nullptr);
  }
  InterruptGuard(const InterruptGuard&) = delete;
  InterruptGuard& operator=(const InterruptGuard&) = delete;

 private:
  static constexpr std::array<int, 2> kSignals{SIGINT, SIGTERM};
  std::array<struct sigaction, 2> before_{};
};

// On a terminal a line that lives; elsewhere a line every few seconds.
class ProgressPrinter {
 public:
  void Show(const BuildProgress& progress) {
    const auto now = Clock::now();
    const bool new_stage = progress.stage != stage_;
    if (new_stage) stage_begin_ = now;
    stage_ = progress.stage;
    const auto pause = terminal_ ? std::chrono::milliseconds(100) : std::chrono::milliseconds(5000);
    if (now - shown_ < pause && !(terminal_ && new_stage)) return;
    shown_ = now;
    const double seconds = std::chrono::duration<double>(now - stage_begin_).count();
    std::string line = fmt::format("{} {}/{} files, {}", progress.stage, progress.files_done,
                                   progress.files, Megabytes(progress.text_bytes));
    if (progress.stage == "train")
      line = fmt::format("train a vocabulary on {}", Megabytes(progress.text_bytes));
    if (progress.tokens > 0)
      line += fmt::format(", {} tokens, {:.0f} tokens/s", progress.tokens,
                          PerSecond(progress.tokens, seconds));
    if (terminal_)
      fmt::print(stderr, "\r\033[K{}", line);
    else
      fmt::print(stderr, "perdure data build: {}\n", line);
    std::fflush(stderr);
  }
  void Clear() const {
    if (terminal_ && !stage_.empty()) fmt::print(stderr, "\r\033[K");
  }

 private:
  const bool terminal_ = ::isatty(STDERR_FILENO) == 1;
  Clock::time_point stage_begin_{};
  Clock::time_point shown_ = Clock::now();
  std::string stage_;
};

Json ToJson(const BuildOptions& options, const BuildSummary& summary) {
  Json skipped = Json::object();
  for (int i = 1; i < kSkipReasons; ++i)
    skipped[std::string(SkipReasonName(SkipReason{i}))] = summary.skipped[static_cast<size_t>(i)];
  Json json{{"outputs", summary.outputs},
            {"tokenizer", summary.model.empty() ? options.tokenizer : summary.model},
            {"vocab", summary.vocab},
            {"files", summary.files},
            {"documents", summary.documents},
            {"skipped", skipped},
            {"text_bytes", summary.text_bytes},
            {"tokens", summary.tokens},
            {"token_bytes", summary.token_bytes},
            {"encoding_seconds", summary.encoding_seconds},
            {"tokens_per_second", PerSecond(summary.tokens, summary.encoding_seconds)}};
  if (!summary.model.empty()) {
    json["training_bytes"] = summary.training_bytes;
    json["training_seconds"] = summary.training_seconds;
  }
  return json;
}

void PrintSummary(const BuildOptions& options, const BuildSummary& summary) {
  int64_t skipped = 0;
  std::string reasons;
  for (size_t i = 0; i < summary.skipped.size(); ++i) {
    if (summary.skipped[i] == 0) continue;
    skipped += summary.skipped[i];
    reasons += fmt::format("{}{} {}", reasons.empty() ? "" : ", ", summary.skipped[i],
                           SkipReasonName(SkipReason{static_cast<int>(i)}));
  }
  fmt::print("wrote      {}\n", fmt::join(summary.outputs, " "));
  fmt::print("files      {}\n", summary.files);
  fmt::print("skipped    {}{}\n", skipped, skipped > 0 ? " (" + reasons + ")" : "");
  fmt::print("documents  {}\n", summary.documents);
  fmt::print("text       {}\n", Megabytes(summary.text_bytes));
  fmt::print("tokens     {} ({:.2f} bytes of text each, stored in {})\n", summary.tokens,
             PerSecond(summary.text_bytes, static_cast<double>(summary.tokens)),
             summary.token_bytes);
  fmt::print("tokenizer  {}, vocab {}\n", summary.model.empty() ? options.tokenizer : summary.model,
             summary.vocab);
  if (!summary.model.empty())
    fmt::print("training   {:.1f} s on {}\n", summary.training_seconds,
               Megabytes(summary.training_bytes));
  fmt::print("encoding   {:.1f} s, {:.0f} tokens/s\n", summary.encoding_seconds,
             PerSecond(summary.tokens, summary.encoding_seconds));
}

absl::Status Build(const BuildOptions& options, bool json) {
  const InterruptGuard guard;
  ProgressPrinter printer;
  const absl::StatusOr<BuildSummary> summary =
      BuildDataset(options, [&](const BuildProgress& progress) {
        printer.Show(progress);
        return interrupted == 0;
      });
  printer.Clear();
  if (!summary.ok()) return summary.status();
  if (json)
    Print(ToJson(options, *summary));
  else
    PrintSummary(options, *summary);
  return absl::OkStatus();
}

struct InspectOptions {
  std::string prefix;
  std::string tokenizer;
  std::optional<int64_t> document;
  std::optional<int64_t> sample;
  int64_t context = 0;
  bool json = false;
};

// For a terminal: what would move its cursor is shown as \xNN.
std::string Printable(const std::string& text) {
  const std::string valid = RepairUtf8(text);
  std::string printable;
  for (size_t i = 0; i < valid.size(); ++i) {
    const auto byte = static_cast<uint8_t>(valid[i]);
    const bool control = (byte < 0x20 && byte != '\n' && byte != '\t') || byte == 0x7F;
    const bool c1_control =
        byte == 0xC2 && i + 1 < valid.size() && static_cast<uint8_t>(valid[i + 1]) < 0xA0;
    if (control)
      printable += fmt::format("\\x{:02x}", byte);
    else if (c1_control)
      printable += fmt::format("\\x{:02x}", static_cast<uint8_t>(valid[++i]));
    else
      printable.push_back(valid[i]);
  }
  return printable;
}

class Inspector {
 public:
  explicit Inspector(const InspectOptions& options) : options_(options) {}

  absl::Status Run() {
    ASSIGN_OR_RETURN(dataset_, IndexedDataset::Open(options_.prefix));
    RETURN_IF_ERROR(OpenTokenizer());
    Json json{{"prefix", options_.prefix},
              {"documents", dataset_->documents()},
              {"sequences", dataset_->sequences()},
              {"tokens", dataset_->tokens()},
              {"token_bytes", dataset_->token_bytes()},
              {"max_token", dataset_->MaxToken()},
              {"tokenizer", tokenizer_ == nullptr ? Json() : Json(tokenizer_name_)},
              {"vocab", tokenizer_ == nullptr ? Json() : Json(tokenizer_->vocab())}};
    ASSIGN_OR_RETURN(json["excerpts"], Excerpts());
    if (options_.json)
      Print(json);
    else
      PrintTable(json);
    return absl::OkStatus();
  }

 private:
  // The one that was named; else the model beside the data; else bytes, where the ids allow it;
  // else none.
  absl::Status OpenTokenizer() {
    tokenizer_name_ = options_.tokenizer;
    const std::string beside = options_.prefix + ".model";
    if (tokenizer_name_.empty() && ::access(beside.c_str(), F_OK) == 0) tokenizer_name_ = beside;
    if (tokenizer_name_.empty() && dataset_->MaxToken() <= 256) tokenizer_name_ = "byte";
    if (tokenizer_name_.empty()) return absl::OkStatus();
    ASSIGN_OR_RETURN(tokenizer_, Tokenizer::Open(tokenizer_name_));
    if (dataset_->MaxToken() >= tokenizer_->vocab())
      return InvalidArgument(
          "{}.bin holds token id {}; tokenizer {} has {} ids: give the one it was built with "
          "(--tokenizer)",
          options_.prefix, dataset_->MaxToken(), tokenizer_name_, tokenizer_->vocab());
    return absl::OkStatus();
  }

  absl::StatusOr<Json> Excerpts() const {
    Json excerpts = Json::array();
    if (options_.sample.has_value()) {
      const int64_t samples = std::max<int64_t>(dataset_->tokens() - 1, 0) / options_.context;
      if (*options_.sample >= samples)
        return InvalidArgument(
            "{} has {} samples of context {}: --sample {} is none of them (the first is 0)",
            options_.prefix, samples, options_.context, *options_.sample);
      excerpts.push_back(Excerpt("sample", *options_.sample, *options_.sample * options_.context,
                                 options_.context + 1));
    } else if (options_.document.has_value()) {
      if (*options_.document >= dataset_->documents())
        return InvalidArgument(
            "{} has {} documents: --document {} is none of them (the first is 0)", options_.prefix,
            dataset_->documents(), *options_.document);
      excerpts.push_back(Document(*options_.document, dataset_->tokens()));
    } else {
      constexpr int64_t kShownDocuments = 3, kShownTokens = 96;
      const int64_t documents = dataset_->documents();
      for (int64_t i = 0; i < std::min(documents, kShownDocuments); ++i)
        excerpts.push_back(
            Document(i * documents / std::min(documents, kShownDocuments), kShownTokens));
    }
    return excerpts;
  }

  Json Document(int64_t index, int64_t tokens_max) const {
    const auto [first, last] = dataset_->Document(index);
    const int64_t begin = dataset_->SequenceBegin(first);
    return Excerpt("document", index, begin,
                   std::min(dataset_->SequenceBegin(last) - begin, tokens_max));
  }

  Json Excerpt(const char* kind, int64_t index, int64_t begin, int64_t tokens) const {
    std::vector<int32_t> ids(static_cast<size_t>(tokens));
    dataset_->Read(begin, ids);
    Json json{{"kind", kind}, {"index", index}, {"first_token", begin}, {"tokens", tokens}};
    if (options_.sample.has_value() || tokenizer_ == nullptr) json["ids"] = ids;
    if (tokenizer_ != nullptr) json["text"] = Decode(ids);
    return json;
  }

  std::string Decode(const std::vector<int32_t>& ids) const {
    std::string text;
    std::vector<int32_t> part;
    for (const int32_t id : ids) {
      if (id != tokenizer_->end_of_document()) {
        part.push_back(id);
        continue;
      }
      text += tokenizer_->Decode(part) + "<end of document>\n";
      part.clear();
    }
    return text + tokenizer_->Decode(part);
  }

  void PrintTable(const Json& json) const {
    for (const char* key :
         {"prefix", "documents", "sequences", "tokens", "token_bytes", "max_token"})
      fmt::print("{:<12} {}\n", key,
                 json[key].is_string() ? json[key].get<std::string>() : json[key].dump());
    fmt::print("{:<12} {}\n", "tokenizer",
               tokenizer_ == nullptr
                   ? "none found: name one with --tokenizer to see text"
                   : fmt::format("{}, vocab {}", tokenizer_name_, tokenizer_->vocab()));
    for (const Json& excerpt : json["excerpts"]) {
      fmt::print("\n--- {} {}, {} tokens from {}\n", excerpt["kind"].get<std::string>(),
                 excerpt["index"].get<int64_t>(), excerpt["tokens"].get<int64_t>(),
                 excerpt["first_token"].get<int64_t>());
      const std::string shown =
          excerpt.contains("text") ? excerpt["text"].get<std::string>() : excerpt["ids"].dump();
      fmt::print("{}{}", Printable(shown), shown.ends_with('\n') ? "" : "\n");
    }
  }

  const InspectOptions& options_;
  std::unique_ptr<IndexedDataset> dataset_;
  std::unique_ptr<Tokenizer> tokenizer_;  // Null when none is known.
  std::string tokenizer_name_;
};

void AddBuild(CLI::App& data, int* exit_code) {
  struct Flags {
    BuildOptions options;
    bool json = false;
  };
  const auto flags = std::make_shared<Flags>();
  CLI::App* const build =
      data.add_subcommand("build", "Make a dataset, PREFIX.bin and PREFIX.idx, from text");
  build
      ->add_option("--from", flags->options.from,
                   "Files and folders of UTF-8 text, HTML or manual pages; gzip too")
      ->type_name("PATH")
      ->required();
  build
      ->add_option("--tokenizer", flags->options.tokenizer,
                   "byte; sentencepiece:VOCAB, trained on this text and written as PREFIX.model; "
                   "or a .model file")
      ->type_name("byte|sentencepiece:VOCAB|FILE")
      ->required();
  build
      ->add_option("-o,--output", flags->options.output,
                   "Path of the dataset, without .bin and .idx")
      ->type_name("PREFIX")
      ->required();
  build->add_flag("--force", flags->options.force, "Replace a dataset that is there");
  build->add_flag("--json", flags->json, "Print the summary as JSON");
  build->callback(
      [flags, exit_code] { *exit_code = Report("build", Build(flags->options, flags->json)); });
}

void AddInspect(CLI::App& data, int* exit_code) {
  const auto options = std::make_shared<InspectOptions>();
  CLI::App* const inspect = data.add_subcommand("inspect", "Show what a dataset holds");
  inspect->add_option("PREFIX", options->prefix, "Path of the dataset, without .bin and .idx")
      ->required();
  inspect
      ->add_option("--tokenizer", options->tokenizer,
                   "byte, or a .model file (default: PREFIX.model, else byte)")
      ->type_name("byte|FILE");
  CLI::Option* const document =
      inspect->add_option("--document", options->document, "Show document N whole")->type_name("N");
  CLI::Option* const sample =
      inspect->add_option("--sample", options->sample, "Show sample N in file order")
          ->type_name("N");
  CLI::Option* const context =
      inspect->add_option("--context", options->context, "Tokens of a sample")->type_name("C");
  document->check(CLI::NonNegativeNumber)->excludes(sample);
  sample->check(CLI::NonNegativeNumber)->needs(context);
  context->check(CLI::PositiveNumber)->needs(sample);
  inspect->add_flag("--json", options->json, "Print JSON");
  inspect->callback(
      [options, exit_code] { *exit_code = Report("inspect", Inspector(*options).Run()); });
}

}  // namespace

void AddDataCommand(CLI::App& app, int* exit_code) {
  CLI::App* const data = app.add_subcommand("data", "Text to tokens: build and inspect datasets");
  data->require_subcommand(1);
  AddBuild(*data, exit_code);
  AddInspect(*data, exit_code);
}

}  // namespace perdure
