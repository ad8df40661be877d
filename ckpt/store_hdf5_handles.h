// What all uses of libhdf5 share: one thread at a time, identifiers that are given back, files
// without times. Private to ckpt/store_hdf5*.
#pragma once

#include <hdf5.h>

#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "ckpt/store_hdf5_driver.h"

namespace perdure {

// Holds the library: one thread at a time, no printing of errors, no plugins.
class Hdf5Session {
 public:
  Hdf5Session();
  ~Hdf5Session();
  Hdf5Session(const Hdf5Session&) = delete;
  Hdf5Session& operator=(const Hdf5Session&) = delete;

  // What failed first.
  absl::Status Error(std::string_view what) const;

 private:
  // Called when a call of the library fails, while its error stack still stands.
  static herr_t OnError(hid_t stack, void* self);
  static herr_t OnEntry(unsigned, const H5E_error2_t* entry, void* self);

  std::lock_guard<std::mutex> lock_;
  H5E_auto2_t print_ = nullptr;
  void* print_data_ = nullptr;
  std::string first_;
};

// Owns an identifier of any kind but files and datasets, whose close can fail.
class Hdf5Id {
 public:
  Hdf5Id() = default;
  explicit Hdf5Id(hid_t id) : id_(id) {}
  ~Hdf5Id() {
    if (id_ >= 0) H5Idec_ref(id_);
  }
  Hdf5Id(Hdf5Id&& other) noexcept : id_(std::exchange(other.id_, -1)) {}
  Hdf5Id& operator=(Hdf5Id&& other) noexcept {
    std::swap(id_, other.id_);
    return *this;
  }
  hid_t get() const { return id_; }
  hid_t Release() { return std::exchange(id_, -1); }
  bool ok() const { return id_ >= 0; }

 private:
  hid_t id_ = -1;
};

// UTF-8, padded with zeros to `bytes`.
Hdf5Id TextType(size_t bytes);
// Of files in memory, in the format of 1.10; `backing` outlives what is opened with it.
Hdf5Id FileAccess(const Hdf5Id& driver, Hdf5Backing* backing);
// Properties without times of creation, so that equal contents give equal files.
Hdf5Id Timeless(hid_t kind);
bool WriteAttribute(hid_t object, const char* name, hid_t type, const void* value);
bool WriteText(hid_t object, const char* name, const std::string& text);
// A contiguous dataset whose place in the file is settled now and which nobody fills.
Hdf5Id CreateContiguous(hid_t file, const std::string& path, hid_t type,
                        std::span<const hsize_t> dims);

}  // namespace perdure
