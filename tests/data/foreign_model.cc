#include "tests/data/foreign_model.h"

#include <sentencepiece_trainer.h>

#include <unordered_map>

namespace perdure {
namespace {

class Lines final : public sentencepiece::SentenceIterator {
 public:
  explicit Lines(const std::vector<std::string>& lines) : lines_(lines) {}
  bool done() const override { return next_ >= lines_.size(); }
  void Next() override { ++next_; }
  const std::string& value() const override { return lines_[next_]; }
  sentencepiece::util::Status status() const override { return {}; }

 private:
  const std::vector<std::string>& lines_;
  size_t next_ = 0;
};

std::string Train(const std::vector<std::string>& lines,
                  std::unordered_map<std::string, std::string> options) {
  options.insert({{"model_type", "bpe"},
                  {"vocab_size", "400"},
                  {"minloglevel", "2"},
                  {"hard_vocab_limit", "false"}});
  Lines iterator(lines);
  std::string model;
  const auto status = sentencepiece::SentencePieceTrainer::Train(options, &iterator, &model);
  return status.ok() ? model : "";
}

}  // namespace

std::string TrainNormalizingModel(const std::vector<std::string>& lines) {
  return Train(lines, {{"byte_fallback", "true"}, {"normalization_rule_name", "nfkc"}});
}

std::string TrainModelWithoutEnd(const std::vector<std::string>& lines) {
  return Train(lines, {{"eos_id", "-1"}});
}

}  // namespace perdure
