/* look_up NAME: the IPv4 addresses that this C library's resolver finds, a line each. Exits 1 if it finds none. */
#include <arpa/inet.h>
#include <netdb.h>
#include <stdio.h>

int main(int count, char **words)
{
	struct addrinfo wanted = { .ai_family = AF_INET, .ai_socktype = SOCK_STREAM }, *found;
	char text[INET_ADDRSTRLEN];

	if (count != 2 || getaddrinfo(words[1], NULL, &wanted, &found))
		return 1;
	for (; found; found = found->ai_next) {
		struct sockaddr_in *address = (struct sockaddr_in *)found->ai_addr;
		puts(inet_ntop(AF_INET, &address->sin_addr, text, sizeof text));
	}
	return 0;
}
