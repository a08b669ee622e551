#include <pybind11/pybind11.h>
PYBIND11_MODULE(_smiles, m) { m.attr("version") = 1; }
