// Functions that a CUDA compiler makes for the GPU (too), and any other compiler for the CPU.
#pragma once

#if defined(__CUDACC__)
#define STIB_HOST_DEVICE __host__ __device__ __forceinline__
#define STIB_DEVICE __device__ __forceinline__
#define STIB_PRAGMA(text) _Pragma(#text)
#define STIB_UNROLL(times) STIB_PRAGMA(unroll times)
#else
#define STIB_HOST_DEVICE inline
#define STIB_DEVICE inline
#define STIB_UNROLL(times)
#endif
