# Tests in C++ see the library's inside: they link its objects, not the shared library, which hides them.
add_library(mdrt_inside STATIC $<TARGET_OBJECTS:mdrt> ${MDRT_ISA_OBJECTS})
target_include_directories(mdrt_inside PUBLIC csrc csrc/include ${PROJECT_BINARY_DIR}/generated)
target_link_libraries(mdrt_inside PUBLIC Threads::Threads)
set_target_properties(mdrt_inside PROPERTIES LINKER_LANGUAGE CXX)

# One program per file, called as its file; ctest runs each with its defaults.
file(GLOB MDRT_NATIVE_TESTS CONFIGURE_DEPENDS tests/native/*.cc)
foreach(source IN LISTS MDRT_NATIVE_TESTS)
  get_filename_component(name ${source} NAME_WE)
  add_executable(${name} ${source})
  target_link_libraries(${name} PRIVATE mdrt_inside)
  add_test(NAME ${name} COMMAND ${name} WORKING_DIRECTORY ${PROJECT_SOURCE_DIR})
endforeach()
