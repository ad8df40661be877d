#include "ckpt/store_hdf5_driver.h"

#include <algorithm>
#include <functional>

#if H5_VERSION_GE(1, 13, 0)
#include <H5FDdevelop.h>
#endif

namespace perdure {
namespace {

constexpr haddr_t kMaxAddress = haddr_t{1} << 62;

// libhdf5 fills the head; both are reached through a pointer to it.
struct BackedFile {
  H5FD_t head;
  Hdf5Backing* backing;
  haddr_t end_of_allocation;
};

BackedFile* Of(H5FD_t* file) { return reinterpret_cast<BackedFile*>(file); }
const BackedFile* Of(const H5FD_t* file) { return reinterpret_cast<const BackedFile*>(file); }

// The fapl carries a pointer to the backing.
struct DriverInfo {
  Hdf5Backing* backing;
};

H5FD_t* Open(const char*, unsigned, hid_t access, haddr_t) {
  const DriverInfo* info = static_cast<const DriverInfo*>(H5Pget_driver_info(access));
  if (info == nullptr) return nullptr;
  return &(new BackedFile{.head = {}, .backing = info->backing, .end_of_allocation = 0})->head;
}

herr_t Close(H5FD_t* file) {
  delete Of(file);
  return 0;
}

int Compare(const H5FD_t* a, const H5FD_t* b) {
  const std::less<const Hdf5Backing*> less;
  return less(Of(b)->backing, Of(a)->backing) - less(Of(a)->backing, Of(b)->backing);
}

// Those of libhdf5's own driver for plain files, so that the layout is the one it would make.
herr_t Query(const H5FD_t*, unsigned long* flags) {
  if (flags != nullptr)
    *flags = H5FD_FEAT_AGGREGATE_METADATA | H5FD_FEAT_ACCUMULATE_METADATA | H5FD_FEAT_DATA_SIEVE |
             H5FD_FEAT_AGGREGATE_SMALLDATA | H5FD_FEAT_DEFAULT_VFD_COMPATIBLE;
  return 0;
}

haddr_t GetEndOfAllocation(const H5FD_t* file, H5FD_mem_t) { return Of(file)->end_of_allocation; }

herr_t SetEndOfAllocation(H5FD_t* file, H5FD_mem_t, haddr_t end) {
  Of(file)->end_of_allocation = end;
  return 0;
}

haddr_t GetEnd(const H5FD_t* file, H5FD_mem_t) { return Of(file)->backing->bytes; }

herr_t Read(H5FD_t* file, H5FD_mem_t, hid_t, haddr_t offset, size_t bytes, void* data) {
  Of(file)->backing->image->Read(offset, data, bytes);
  return 0;
}

herr_t Write(H5FD_t* file, H5FD_mem_t, hid_t, haddr_t offset, size_t bytes, const void* data) {
  Hdf5Backing& backing = *Of(file)->backing;
  backing.image->Write(offset, data, bytes);
  backing.bytes = std::max<uint64_t>(backing.bytes, offset + bytes);
  return 0;
}

herr_t Truncate(H5FD_t* file, hid_t, hbool_t) {
  Of(file)->backing->bytes = Of(file)->end_of_allocation;
  return 0;
}

}  // namespace

hid_t RegisterBackingDriver() {
  H5FD_class_t driver{};
#if H5_VERSION_GE(1, 13, 0)
  driver.version = H5FD_CLASS_VERSION;
  driver.value =
      static_cast<H5FD_class_value_t>(512);  // The range of drivers that nobody registered.
#endif
  driver.name = "perdure_backing";
  driver.maxaddr = kMaxAddress;
  driver.fc_degree = H5F_CLOSE_STRONG;
  driver.fapl_size = sizeof(DriverInfo);
  driver.open = Open;
  driver.close = Close;
  driver.cmp = Compare;
  driver.query = Query;
  driver.get_eoa = GetEndOfAllocation;
  driver.set_eoa = SetEndOfAllocation;
  driver.get_eof = GetEnd;
  driver.read = Read;
  driver.write = Write;
  driver.truncate = Truncate;
  return H5FDregister(&driver);
}

herr_t SetBackingDriver(hid_t access, hid_t driver, Hdf5Backing* backing) {
  const DriverInfo info{backing};
  return H5Pset_driver(access, driver, &info);
}

}  // namespace perdure
