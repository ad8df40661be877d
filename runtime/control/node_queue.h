// Nodes in the order in which they were last put at the back; all operations take O(1). Its memory
// grows with the highest NodeId put into it and never shrinks.
//
// Where all nodes have the same time to wait, the front is whose wait ends first: no heap is
// needed.
#pragma once

#include <cstddef>
#include <vector>

#include "runtime/base/check.h"
#include "runtime/control/ids.h"

namespace perdure {

class NodeQueue {
 public:
  bool empty() const { return front_ == kNone; }
  bool Contains(NodeId node) const { return node < links_.size() && links_[node].queued; }
  NodeId front() const {
    PERDURE_CHECK(!empty());
    return front_;
  }

  // Nodes that it has room for: the highest one ever put into it, and one.
  std::size_t size() const { return links_.size(); }

  // Wherever it was before.
  void PutAtBack(NodeId node) {
    Remove(node);
    if (node >= links_.size()) links_.resize(std::size_t{node} + 1);
    links_[node] = {.before = back_, .after = kNone, .queued = true};
    (back_ == kNone ? front_ : links_[back_].after) = node;
    back_ = node;
  }
  // Nothing happens where it is not in the queue.
  void Remove(NodeId node) {
    if (!Contains(node)) return;
    const Link link = links_[node];
    (link.before == kNone ? front_ : links_[link.before].after) = link.after;
    (link.after == kNone ? back_ : links_[link.after].before) = link.before;
    links_[node] = {};
  }

  friend bool operator==(const NodeQueue&, const NodeQueue&) = default;

 private:
  static constexpr NodeId kNone = ~NodeId{0};
  struct Link {
    NodeId before = kNone, after = kNone;
    bool queued = false;
    friend bool operator==(const Link&, const Link&) = default;
  };
  std::vector<Link> links_;  // By NodeId.
  NodeId front_ = kNone, back_ = kNone;
};

}  // namespace perdure
