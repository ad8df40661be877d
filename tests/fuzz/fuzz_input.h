// What fuzz targets share. A target returns, or the program ends: by a sanitizer, by FuzzCheck.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

namespace perdure {

inline std::string_view FuzzText(const uint8_t* data, size_t size) {
  return {reinterpret_cast<const char*>(data), size};
}

// What must hold of everything that a reader accepts.
inline void FuzzCheck(bool holds) {
  if (!holds) std::abort();
}

// A file in memory with these bytes; -1: none.
inline int FuzzFile(const uint8_t* data, size_t size) {
  const int fd = ::memfd_create("fuzz", MFD_CLOEXEC);
  if (fd >= 0 && ::write(fd, data, size) != static_cast<ssize_t>(size)) std::abort();
  return fd;
}

}  // namespace perdure
