// Vectors of one instruction set, included into the kernels' namespace, which defines kVectorBytes.

template <typename S>
struct VectorOf {
  typedef S type __attribute__((vector_size(kVectorBytes)));
};
template <typename S>
using Vector = typename VectorOf<S>::type;
template <typename S>
constexpr int kLanes = kVectorBytes / int(sizeof(S));

template <int... I>
struct Lanes {};
template <int N, int... I>
struct MakeLanes : MakeLanes<N - 1, N - 1, I...> {};
template <int... I>
struct MakeLanes<0, I...> {
  using type = Lanes<I...>;
};

template <typename S>
inline Vector<S> load(const S* p) {
  Vector<S> v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

template <typename S>
inline void store(S* p, Vector<S> v) {
  __builtin_memcpy(p, &v, sizeof v);
}

// Exchange the off-diagonal Step x Step blocks of two rows: one stage of an in-register transpose.
template <typename S, int Step, int... I>
inline void exchange(Vector<S>& a, Vector<S>& b, Lanes<I...>) {
  constexpr int n = kLanes<S>;
  const Vector<S> low = __builtin_shufflevector(a, b, ((I & Step) ? n + I - Step : I)...);
  const Vector<S> high = __builtin_shufflevector(a, b, ((I & Step) ? n + I : I + Step)...);
  a = low;
  b = high;
}

template <typename S, int Step = kLanes<S> / 2>
inline void transpose(Vector<S>* v) {
  if constexpr (Step > 0) {
#pragma GCC unroll 16
    for (int i = 0; i < kLanes<S>; ++i)
      if (!(i & Step)) exchange<S, Step>(v[i], v[i + Step], typename MakeLanes<kLanes<S>>::type{});
    transpose<S, Step / 2>(v);
  }
}
