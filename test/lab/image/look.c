/*
 * Owns looking names up as programs in musl images do (Alpine and its kin): getaddrinfo(3) of musl, with which it is linked.
 * Must not print anything but a line for each name: the name, and its IPv4 addresses or the number of the error.
 */
#include <arpa/inet.h>
#include <netdb.h>
#include <stdio.h>
#include <string.h>

int main(int count, char **names) {
  for (int at = 1; at < count; at++) {
    struct addrinfo hints, *list, *one;
    memset(&hints, 0, sizeof hints);
    hints.ai_family = AF_INET;
    hints.ai_socktype = SOCK_STREAM;
    int error = getaddrinfo(names[at], 0, &hints, &list);
    printf("%s", names[at]);
    if (error) {
      printf(" %d\n", error);
      continue;
    }
    for (one = list; one; one = one->ai_next) {
      char text[INET_ADDRSTRLEN];
      inet_ntop(AF_INET, &((struct sockaddr_in *)one->ai_addr)->sin_addr, text, sizeof text);
      printf(" %s", text);
    }
    printf("\n");
    freeaddrinfo(list);
  }
  return 0;
}
