// libhdf5 without a file system: a driver by which it finds files in memory.
//
// Its own drivers cannot be used: in 1.10.8 a call that fails (disk full, stale handle) leaves
// dangling objects behind, which break the process at exit. Here it is given nothing that can fail;
// our code does all I/O, and no file is ever locked.
#pragma once

#include <hdf5.h>

#include "ckpt/sparse_image.h"

namespace perdure {

// A file to libhdf5.
struct Hdf5Backing {
  SparseImage* image = nullptr;
  uint64_t bytes = 0;
};

// An identifier for H5FDunregister; negative when libhdf5 refuses.
hid_t RegisterBackingDriver();

// Lets files that are created or opened with `access` be `backing`, which outlives them. Their
// names mean nothing.
herr_t SetBackingDriver(hid_t access, hid_t driver, Hdf5Backing* backing);

}  // namespace perdure
