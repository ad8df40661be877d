// Floats that stand in foreign files, addressed by position: what imports put tensors together
// from.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "ckpt/convert/foreign_file.h"
#include "ckpt/convert/torch_file.h"

namespace perdure {

class FloatSource {
 public:
  virtual ~FloatSource() = default;
  virtual int64_t size() const = 0;
  // Elements [first, first + out.size()). REQUIRES: they exist.
  virtual absl::Status Read(int64_t first, std::span<float> out) = 0;
};

// The elements of one tensor in row-major order.
class TensorSource final : public FloatSource {
 public:
  // `files` outlives this.
  TensorSource(FileCache& files, std::string path, TorchTensor tensor)
      : files_(files), path_(std::move(path)), tensor_(std::move(tensor)) {}
  int64_t size() const override { return tensor_.size(); }
  absl::Status Read(int64_t first, std::span<float> out) override;

 private:
  FileCache& files_;
  std::string path_;
  TorchTensor tensor_;
};

// Runs of tensors, one after the other.
class ChainSource final : public FloatSource {
 public:
  void Add(std::shared_ptr<FloatSource> source, int64_t first, int64_t count);
  int64_t size() const override { return size_; }
  absl::Status Read(int64_t first, std::span<float> out) override;

 private:
  struct Link {
    std::shared_ptr<FloatSource> source;
    int64_t first = 0;  // In the source.
    int64_t count = 0;
    int64_t at = 0;  // In the chain.
  };
  std::vector<Link> links_;
  int64_t size_ = 0;
};

// Copies that must be equal: each read compares all of them bit by bit. DataLoss names `what`, the
// element and both values.
class ReplicatedSource final : public FloatSource {
 public:
  ReplicatedSource(std::vector<std::shared_ptr<FloatSource>> copies, std::string what)
      : copies_(std::move(copies)), what_(std::move(what)) {}
  int64_t size() const override { return copies_.front()->size(); }
  absl::Status Read(int64_t first, std::span<float> out) override;

 private:
  std::vector<std::shared_ptr<FloatSource>> copies_;
  std::string what_;
};

// Zeros, as many as one likes.
class ZeroSource final : public FloatSource {
 public:
  explicit ZeroSource(int64_t size) : size_(size) {}
  int64_t size() const override { return size_; }
  absl::Status Read(int64_t first, std::span<float> out) override;

 private:
  int64_t size_;
};

}  // namespace perdure
