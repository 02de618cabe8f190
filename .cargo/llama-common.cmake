# Of llama.cpp's `common` kiv needs what turns a JSON schema into a grammar, and its Rust
# bindings name some more. Nothing calls its parsers of chats and of command lines, its
# downloads and its templates: four fifths of the time that it takes to compile. cmake includes
# this file after every `project` (CMAKE_PROJECT_INCLUDE in config.toml).

function(kiv_lighten_common)
  if(NOT TARGET llama-common)
    return()
  endif()
  get_target_property(sources llama-common SOURCES)
  list(FILTER sources EXCLUDE REGEX
    "^((.*/)?(parsers|jinja)/.*|(arg|chat.*|console|debug|download|hf-cache|imatrix-loader|peg-parser|preset|subproc)\\.cpp)$")
  set_property(TARGET llama-common PROPERTY SOURCES ${sources})
endfunction()

# Older ones compile all of it.
if(CMAKE_VERSION VERSION_GREATER_EQUAL 3.19 AND CMAKE_CURRENT_SOURCE_DIR STREQUAL CMAKE_SOURCE_DIR)
  cmake_language(DEFER CALL kiv_lighten_common)
endif()
